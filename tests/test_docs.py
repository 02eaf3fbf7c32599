"""The scripts in the pages of `docs/` run as they stand there, and learn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optimizers import Adam

PAGE = Path(__file__).parent.parent / "docs" / "distributed.md"

#: Seconds that a script may take.
LIMIT = 120

#: The scripts of the page, by the name in their first line.
SCRIPTS = {
    name: body for body, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is without torch.distributed"),
]


def losses(folder, name, processes=2):
    """Run a script as the page says, and read the losses that it prints."""
    (folder / name).write_text(SCRIPTS[name], encoding="utf-8")
    # Any free port, where torchrun would take one that another test may have.
    torchrun = ["torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    running = subprocess.Popen(
        [sys.executable, "-m", *torchrun, "--nproc-per-node", str(processes), name],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = running.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        # torchrun then ends its processes; if it were killed they would stay.
        running.terminate()
        printed, errors = running.communicate()
    assert running.returncode == 0, errors
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]


def test_loss_of_ddp_falls(tmp_path):
    first, *_, last = losses(tmp_path, "ddp.py")
    assert last < first / 5


def test_loss_of_zero_falls_and_its_state_loads_into_a_plain_optimizer(tmp_path):
    first, *_, last = losses(tmp_path, "zero.py")
    assert last < first / 5
    saved = torch.load(tmp_path / "zero.pt", weights_only=True)
    optimizer = Adam([torch.zeros_like(p, requires_grad=True) for p in saved["model"].values()])
    optimizer.load_state_dict(saved["optimizer"])
    assert [state["step"] for state in optimizer.state.values()] == [101] * len(saved["model"])


def test_loss_of_fsdp_falls_and_goes_on_falling_in_another_number_of_processes(tmp_path):
    first, *_, last = losses(tmp_path, "fsdp.py")
    assert last < first / 5
    assert max(losses(tmp_path, "fsdp.py", processes=1)) < last


def test_every_script_is_run_here():
    assert set(SCRIPTS) == {"ddp.py", "zero.py", "fsdp.py"}
