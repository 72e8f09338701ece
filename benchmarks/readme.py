"""The README's figures, from the recorded run: ``python -m benchmarks.readme`` writes them between the two marks."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.record import Record
from benchmarks.targets import ratios

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures of docs/performance.json -->", "<!-- end of figures -->"
SHOWN = {
    "inference.mlp_256": "MLP, batch 256",
    "inference.resnet18": "ResNet-18",
    "inference.resnet50": "ResNet-50",
    "inference.mobilenet_v2": "MobileNet-v2",
    "inference.unet_128": "U-Net, 128 x 128",
    "inference.gpt2_prefill_128": "GPT-2 small, 128 tokens",
    "inference.gpt2_decode_128": "GPT-2 small, one token with a cache",
    "inference.bert_128": "BERT-like encoder, 128",
    "inference.lstm_64_256": "LSTM, 100 steps, batch 16",
    "training.mlp_64": "MLP training step",
    "training.resnet18_8x64": "ResNet-18 training step, 8 x 3 x 64 x 64",
    "training.gpt_384": "GPT training step (6 layers, 384)",
    "training.lstm_64_256": "LSTM training step",
    "gemm.1024": "product 1024 x 1024",
    "memory.softmax": "softmax 4096 x 4096",
}
PEERS = {
    "torch": "PyTorch",
    "torch.compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
}
GROUPS = ("inference", "training", "conv", "memory", "gemm")


def figures(record: Record) -> str:
    """A table of models on one thread, and the groups' geometric means."""
    found = {r["workload"]: r for r in record.results if r["threads"] == 1}
    rows = []
    for name, title in SHOWN.items():
        times = ratios(found[name])
        ours = 1e3 * median(found[name]["seconds"]["flambeau"])
        cells = [f"{times[peer]:.2f}" if peer in times else "" for peer in PEERS]
        rows.append([title, f"{ours:.1f}" if ours < 100 else f"{ours:.0f}", *cells])
    table = report.markdown_table(["", "ours, ms", *PEERS.values()], rows)
    best = {
        line[0]: line[-2] for line in report.means(list(found.values()), list(PEERS)) if line[0] in GROUPS
    }
    means = ", ".join(f"{group} {best[group]}" for group in GROUPS)
    return f"{table}\n\nGeometric means beside the fastest peer of each workload: {means}."


def written(text: str, record: Record) -> str:
    """`text` with the figures of `record` between the marks. ValueError if it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END} in this text")
    return f"{before}{BEGIN}\n{figures(record)}\n{END}{after}"


def main() -> None:
    readme = ROOT / "README.md"
    record = Record(ROOT / "docs" / "performance.json", resume=True)
    readme.write_text(written(readme.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
