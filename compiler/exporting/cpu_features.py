"""Whether a CPU has the instructions that a library was built for: what `create` asks, as LLVM IR."""

from __future__ import annotations

from flambeau.compiler.targets.cpu import uses
from flambeau.compiler.targets.machine import TargetDescription, host_target

#: (name, cpuid leaf, its subleaf, register, bit): what is tested at `create` where the code was built with the feature.
X86_FEATURES = (
    ("fma", 1, 0, "c", 12),
    ("avx", 1, 0, "c", 28),
    ("f16c", 1, 0, "c", 29),
    ("avx2", 7, 0, "b", 5),
    ("bmi2", 7, 0, "b", 8),
    ("avx512f", 7, 0, "b", 16),
    ("avx512dq", 7, 0, "b", 17),
    ("avx512bw", 7, 0, "b", 30),
    ("avx512vl", 7, 0, "b", 31),
    ("avx512vnni", 7, 0, "c", 11),
    ("avxvnni", 7, 1, "a", 4),
    ("avx512bf16", 7, 1, "a", 5),
)


def required_features(target: TargetDescription) -> list[tuple[str, int, int, str, int]]:
    """The x86 features that code for `target` needs a check for; none on other architectures.

    `cpuid` has to be assembled, and LLVM as llvmlite packs it assembles for the host's architecture only.
    """
    if target.architecture != "x86_64" or host_target().architecture != "x86_64":
        return []
    return [f for f in X86_FEATURES if uses(target, f[0])]


def cpu_check(target: TargetDescription) -> list[str]:
    """Branches to %supported or %unsupported."""
    features = required_features(target)
    if not features:
        return ["  br label %supported"]
    lines = []
    registers = {}
    for leaf, subleaf in sorted({(leaf, subleaf) for _, leaf, subleaf, *_ in features} | {(1, 0)}):
        answer = f"%id{leaf}.{subleaf}"
        lines.append(
            f'  {answer} = call {{ i32, i32, i32, i32 }} asm sideeffect "cpuid", '
            f'"={{ax}},={{bx}},={{cx}},={{dx}},{{ax}},{{cx}}"(i32 {leaf}, i32 {subleaf})'
        )
        for position, register in enumerate("abc"):
            registers[leaf, subleaf, register] = f"{answer}{register}"
            lines.append(f"  {answer}{register} = extractvalue {{ i32, i32, i32, i32 }} {answer}, {position}")
    masks: dict[tuple[int, int, str], int] = {(1, 0, "c"): 1 << 27}  # OSXSAVE: xgetbv may be asked
    for _, leaf, subleaf, register, bit in features:
        masks[leaf, subleaf, register] = masks.get((leaf, subleaf, register), 0) | 1 << bit
    ok = ""
    for number, (key, mask) in enumerate(masks.items()):
        signed = mask - (1 << 32) if mask >> 31 else mask
        lines.append(f"  %bits{number} = and i32 {registers[key]}, {signed}")
        lines.append(f"  %has{number} = icmp eq i32 %bits{number}, {signed}")
        if ok:
            lines.append(f"  %all{number} = and i1 {ok}, %has{number}")
        ok = f"%all{number}" if ok else f"%has{number}"
    wide = any(f[0].startswith("avx512") for f in features)
    lines += [
        f"  br i1 {ok}, label %system, label %unsupported",
        "system:",
        '  %xcr = call { i32, i32 } asm sideeffect "xgetbv", "={ax},={dx},{cx}"(i32 0)',
        "  %xcr0 = extractvalue { i32, i32 } %xcr, 0",
        f"  %saved = and i32 %xcr0, {0xE6 if wide else 6}",
        f"  %kept = icmp eq i32 %saved, {0xE6 if wide else 6}",
        "  br i1 %kept, label %supported, label %unsupported",
    ]
    return lines
