import numpy as np
import pytest
from PIL import Image

from diffusers_lightningdit.evaluation.image_decoding import decode_rgb


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_any_mode_of_8_bits_becomes_rgb(mode):
    image = Image.effect_noise((6, 4), 60).convert(mode)
    decoded = decode_rgb("an image", lambda: image.copy())
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "arguments", "message"),
    [
        ("I;16", {}, "row 3 has mode 'I;16'; required: one of 1, L, LA"),
        ("RGBA", {"modes": ("L", "RGB")}, "row 3 has mode 'RGBA'; required: one of L, RGB."),
    ],
)
def test_another_mode(mode, arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_rgb("row 3", lambda: Image.new(mode, (6, 4)), **arguments)


@pytest.mark.parametrize(("error", "reason"), [(OSError("broken\n  data"), "broken data"), (EOFError(), "EOFError")])
def test_an_image_that_cannot_be_opened(error, reason):
    def open_image():
        raise error

    with pytest.raises(ValueError, match=rf"^row 3 cannot be read \({reason}\); required: a PNG file\.$"):
        decode_rgb("row 3", open_image, kind="a PNG file")
