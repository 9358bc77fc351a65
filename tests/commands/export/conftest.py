from pathlib import Path
from typing import Any

import pytest
from commands.export.exporting import NET, PLAN, run

from step_cli.formats.plan import KEY, plan_json
from step_cli.formats.safetensors.writer import save_safetensors


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.py`` and the sparse weights of its model."""
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(NET)
    torch = pytest.importorskip("torch")
    from step_cli.formats.pytorch.arrays import to_array
    from step_cli.optim.mask import nm_mask

    scope: dict[str, Any] = {}
    exec(NET, scope)
    model = scope["build"]()
    with torch.no_grad():
        for name in PLAN:
            weight = model.get_parameter(name)
            weight.mul_(nm_mask(weight.abs(), "2:4", 1))
    state = {name: to_array(value) for name, value in model.state_dict().items()}
    save_safetensors(folder / "m.safetensors", state, {KEY: plan_json(PLAN)})
    return folder


@pytest.fixture(scope="session")
def exported(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "m.onnx"
    assert run(net, out).ok
    return out
