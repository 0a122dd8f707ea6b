"""A rendered clip as H.264, as a camera that compresses would give it: `python -m calibration.h264 IN OUT.mp4 [CRF]`.

For benchmarks of decoding. PyAV (the extra `lab` or `test`) brings the encoder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

CRF = 20
"""Near what web cameras give at 2-4 Mbit/s for such a picture."""


def encode(source: Path, out: Path, crf: int = CRF) -> None:
    """Frame for frame, at the source's own rate. Raises ValueError for what is no video."""
    import av

    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    fps = capture.get(cv2.CAP_PROP_FPS)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if not capture.isOpened() or not fps:
        raise ValueError(f"{source}: not a video that can be decoded")
    with av.open(str(out), "w") as sink:
        stream = sink.add_stream("libx264", rate=round(fps), options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        while True:
            ok, picture = capture.read()
            if not ok:
                break
            sink.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        sink.mux(stream.encode())
    capture.release()


if __name__ == "__main__":
    encode(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
