"""Images as bytes become arrays that the vision tower reads. No jax: decoding must not wait for it.

    parts.py          which image a part of a message means
    decode.py         path, bytes, data URL, array or PIL image -> upright RGB, within limits
    pan_and_scan.py   the crops of a picture that is far from square
    pictures.py       RGB -> 896 x 896 tiles, their content keys, and the numbers the tower takes
    video.py          which frames of a video are shown; video_file.py reads them with PyAV

Not here: where image tokens stand in a prompt (tokenizer/images.py), what the tower computes (model/siglip.py).
"""

from gemworks.media.decode import Limits, decode_image
from gemworks.media.pan_and_scan import PanAndScan, crop_boxes
from gemworks.media.parts import ImageRequest, image_request
from gemworks.media.pictures import Picture, prepare_picture, tower_input
from gemworks.media.video import Frame, read_frames

__all__ = [
    "Frame",
    "ImageRequest",
    "Limits",
    "PanAndScan",
    "Picture",
    "crop_boxes",
    "decode_image",
    "image_request",
    "prepare_picture",
    "read_frames",
    "tower_input",
]
