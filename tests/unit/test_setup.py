"""What set-up does about flash-attn: run in bash, with pip, python, nvcc and nvidia-smi put in their places."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "cksum", "dirname", "grep", "mktemp", "rm", "sed", "tail", "touch")
KERNEL = "left out, attention is by the kernel that torch has"
UNDEFINED = "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E"

# flash-attn is as good as $STATE says: whole, hollow (no kernels) or broken; no file: it is not installed
PIP = """
echo "$*" >> "$CALLS"
case "$1 $*" in
    show*) [ -e "$STATE" ] ;;
    uninstall*) rm -f "$STATE" ;;
    install*flash-attn*)
        [ -z "$PIP_SAYS" ] || { echo "$PIP_SAYS" >&2; exit 1; }
        [ -z "$FLASH_ATTENTION_SKIP_CUDA_BUILD" ] && echo "$BUILT" > "$STATE" || echo "$PREBUILT" > "$STATE" ;;
esac
"""
PYTHON = """
case "$*" in
    *torch.version.cuda*) echo "$TORCH_CUDA" ;;
    *flash_attn*)
        case "$(cat "$STATE")" in
            whole) exit 0 ;;
            hollow) echo "ModuleNotFoundError: No module named 'flash_attn_2_cuda'" >&2 ;;
            *) echo "Traceback (most recent call last):" >&2; echo "$UNDEFINED" >&2 ;;
        esac
        exit 1 ;;
esac
"""


@dataclass
class Machine:
    """A copy of the scripts beside a .venv of stubs, on a PATH that holds nothing else but a few tools."""

    root: Path
    variables: dict[str, str] = field(
        default_factory=lambda: {"TORCH_CUDA": "13.0", "BUILT": "whole", "PREBUILT": "hollow", "UNDEFINED": UNDEFINED}
    )

    def __post_init__(self) -> None:
        for directory in (".venv/bin", "bin", "cuda/bin", "scripts"):
            (self.root / directory).mkdir(parents=True)
        for name in TOOLS:
            (self.root / "bin" / name).symlink_to(str(shutil.which(name)))
        for name in ("setup.sh", "flash_attn.sh"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.program(".venv/bin/pip", PIP)
        self.program(".venv/bin/python", PYTHON)

    def program(self, path: str, body: str) -> None:
        file = self.root / path
        file.write_text(f"#!{shutil.which('bash')}\n{body}")
        file.chmod(0o755)

    def toolkit(self, release: str) -> None:
        self.program("cuda/bin/nvcc", f"echo 'Cuda compilation tools, release {release}, V{release}.48'")

    def run(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.root}/.venv/bin:{self.root}/bin", "CUDA_HOME": str(self.root / "cuda"),
            "STATE": str(self.root / "state"), "CALLS": str(self.root / "calls"), **self.variables, **variables,
        }  # fmt: skip
        if "TMPDIR" in os.environ:
            environment["TMPDIR"] = os.environ["TMPDIR"]
        return subprocess.run(
            [str(shutil.which("bash")), "-c", command], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip

    def flash_attn(self, **variables: str) -> str:
        """The one line that the script says."""
        done = self.run("bash scripts/flash_attn.sh", **variables)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        (line,) = done.stdout.splitlines()
        return line

    @property
    def calls(self) -> list[str]:
        file = self.root / "calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def installed(self) -> bool:
        return (self.root / "state").exists()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def test_without_a_toolkit_and_a_fitting_wheel_it_is_left_out(machine: Machine) -> None:
    said = f"flash-attn: {KERNEL} (no wheel was built for this torch and Python, and there is no CUDA toolkit)"
    assert machine.flash_attn() == said
    assert not machine.installed
    assert machine.flash_attn(PIP_SAYS="ERROR: Failed to build") == said


def test_a_fitting_wheel_needs_no_toolkit(machine: Machine) -> None:
    said = machine.flash_attn(PREBUILT="whole")
    assert said == "flash-attn: installed (a wheel was built for this torch and Python)"
    assert machine.installed


def test_a_toolkit_of_another_major_release_builds_nothing(machine: Machine) -> None:
    machine.toolkit("12.4")
    assert machine.flash_attn().endswith("and the CUDA toolkit is 12.4 where torch has 13.0)")
    assert not machine.installed
    assert machine.flash_attn(R1RANKER_FLASH_ATTN="1") == (
        "flash-attn: installed (built with CUDA 12.4, torch has 13.0)"
    )


def test_with_a_fitting_toolkit_it_is_built_after_torch_and_changes_no_other_package(machine: Machine) -> None:
    machine.toolkit("13.1")
    assert machine.flash_attn() == "flash-attn: installed (built with CUDA 13.1, torch has 13.0)"
    assert machine.installed
    (build,) = [call for call in machine.calls if "flash-attn>=" in call]
    assert {"--no-deps", "--no-build-isolation", "--no-cache-dir"} <= set(build.split())


def test_a_build_that_fails_ends_nothing(machine: Machine) -> None:
    machine.toolkit("13.0")
    said = machine.flash_attn(PIP_SAYS="error: command 'nvcc' failed\nERROR: Failed building wheel for flash-attn\n\n")
    assert said == f"flash-attn: {KERNEL} (it cannot be built: ERROR: Failed building wheel for flash-attn)"
    assert not machine.installed


def test_one_that_cannot_be_imported_is_removed_again(machine: Machine) -> None:
    machine.toolkit("13.0")
    assert machine.flash_attn(BUILT="broken") == (
        f"flash-attn: {KERNEL} (it was built and cannot be imported: {UNDEFINED})"
    )
    assert not machine.installed
    assert any(call.startswith("uninstall") and "flash-attn" in call for call in machine.calls)


def test_one_that_is_there_is_kept_if_it_works_and_else_built_anew(machine: Machine) -> None:
    machine.toolkit("13.0")
    (machine.root / "state").write_text("whole")
    assert machine.flash_attn() == "flash-attn: kept (it is installed and can be imported)"
    (machine.root / "state").write_text("broken")
    assert machine.flash_attn().startswith("flash-attn: installed")
    assert (machine.root / "state").read_text().strip() == "whole"


def test_where_it_is_not_wanted_or_torch_has_no_cuda_pip_is_not_asked_for_it(machine: Machine) -> None:
    machine.toolkit("13.0")
    assert machine.flash_attn(R1RANKER_FLASH_ATTN="0") == f"flash-attn: {KERNEL} (R1RANKER_FLASH_ATTN=0)"
    assert machine.flash_attn(TORCH_CUDA="").endswith("(the torch that is installed is not built for CUDA)")
    assert not [call for call in machine.calls if call.startswith("install")]


SET_UP = "source scripts/setup.sh; echo ready"


def test_set_up_with_a_gpu_goes_on_whatever_becomes_of_flash_attn(machine: Machine) -> None:
    machine.program("bin/nvidia-smi", "")
    machine.toolkit("13.0")
    done = machine.run(SET_UP, BUILT="broken")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("flash-attn: ")]
    assert done.stdout.splitlines()[-1] == "ready"
    assert (machine.root / ".venv" / ".installed").exists()
    everything, flash = (
        next(place for place, call in enumerate(machine.calls) if word in call) for word in (".[gpu,dev]", "flash-attn>=")
    )  # fmt: skip
    assert everything < flash
    assert not machine.installed


def test_set_up_without_a_gpu_does_not_look_at_flash_attn(machine: Machine) -> None:
    done = machine.run(SET_UP)
    assert done.returncode == 0, done.stderr
    assert "flash-attn" not in done.stdout
    assert any(".[cpu,dev]" in call for call in machine.calls)
    assert not any("flash-attn" in call for call in machine.calls)
