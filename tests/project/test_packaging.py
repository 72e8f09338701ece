"""What is built from the project is complete, holds nothing else, and works away from the checkout.

Everything is built from a copy of the sources, so that no `build/` or `*.egg-info` appears in the checkout.
"""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.project.layout import ROOT, package_folders

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(hook: str, source: Path, out: Path) -> Path:
    """Runs one hook of the build back end, as pip would, in `source`; returns what it built."""
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what git ignores."""
    ignore = shutil.ignore_patterns(
        ".*", "build", "dist", "_build", "*.egg-info", "__pycache__", "*.so", "*.o"
    )
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "flambeau", ignore=ignore))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the copy."""
    return build("build_wheel", source, tmp_path_factory.mktemp("wheel"))


def members(wheel: Path) -> set[str]:
    """The installed files of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def expected_modules() -> set[str]:
    """Every Python file of the four folders, by the path at which it installs."""
    return {
        (PurePosixPath(*package.split(".")) / file.relative_to(folder).as_posix()).as_posix()
        for package, folder in package_folders().items()
        for file in folder.rglob("*.py")
    }


def test_wheel_holds_every_module(wheel: Path) -> None:
    installed = {name for name in members(wheel) if name.endswith(".py")}
    assert installed == expected_modules()


def test_wheel_holds_one_top_level_package(wheel: Path) -> None:
    assert {name.split("/")[0] for name in members(wheel)} == {"flambeau"}
    assert not [name for name in members(wheel) if "tests" in PurePosixPath(name).parts]


def test_wheel_holds_type_markers_and_data(wheel: Path) -> None:
    names = members(wheel)
    assert {"flambeau/py.typed", "flambeau/compiler/py.typed", "flambeau/runtime/py.typed"} <= names
    for package, folder in package_folders().items():
        for file in folder.rglob("*.ll"):
            assert f"{package.replace('.', '/')}/{file.relative_to(folder).as_posix()}" in names


def test_wheel_from_sdist_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build("build_sdist", source, tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "tests" / "conftest.py").exists(), "the sdist cannot be tested"
    assert members(build("build_wheel", unpacked, tmp_path / "wheel")) == members(wheel)


def test_installed_wheel_works_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment that has the dependencies but not the checkout's editable install."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=sys.platform != "win32")
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / ("python.exe" if sys.platform == "win32" else "python")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(install, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([str(python), "-c", query], text=True).strip())
    # The dependencies come from this environment: a path in a .pth file is searched last, and .pth files inside it,
    # such as that of an editable install, are not followed.
    site.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    program = (
        "import flambeau, flambeau.compiler, flambeau.runtime, flambeau.cli.main; print(flambeau.__file__)"
    )
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(site)

    done = subprocess.run([str(scripts / "flambeau"), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "compile" in done.stdout


def test_folder_without_init_is_refused(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "flambeau"))
    (copy / "compiler" / "forgotten").mkdir()
    (copy / "compiler" / "forgotten" / "module.py").touch()
    done = subprocess.run([sys.executable, "setup.py", "--name"], cwd=copy, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no __init__.py" in done.stderr and "forgotten" in done.stderr


def test_extras_of_the_design_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"cuda", "cross", "onnx", "torch", "distributed", "examples", "docs", "dev", "bench"}
    assert wanted <= set(project["optional-dependencies"])
