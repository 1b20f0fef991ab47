import os

from diffusers_lightningdit.training.result import write_result


def test_a_result_joins_checkpoints_and_replaces_what_a_killed_process_left(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoint-5").mkdir(parents=True)
    (folder / "unet").mkdir()
    (folder / "unet" / "half").touch()

    def write(partial):
        (partial / "unet").mkdir()
        (partial / "unet" / "whole").touch()
        (partial / "model_index.json").write_text("{}")
        (partial / "model_index.json").chmod(0o600)

    umask = os.umask(0o027)
    try:
        write_result(str(folder), write)
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert names == ["checkpoint-5", "model_index.json", "unet", "unet/whole"]
