"""How much of the rate that it is allowed a collector uses, beside a server that enforces it.

    python -m benchmarks.collect
    python -m benchmarks.collect --rate 50 --photos 1500

A server of this machine stands in for Flickr: it answers after a pause, as a distant one does, and
refuses what comes faster than the rate (a token bucket that holds 5) with 429. ``python -m
geopak.collect`` runs against it with that rate, over real sockets, as a process of its own with its
ledger and files on the disk.

``value`` is requests a second that were answered with what was asked for, from the first to the
last; ``limit`` the rate that the server allows. Photos: the rate of pictures. Queries: that of the
interface, where no photo has a licence that is kept, so that none is fetched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import conclusion, print_conclusions

TARGET = 0.9
_PAUSE_S = 0.15
_BOX = (24.0, 61.0, 37.0, 77.0)


def measure(case: str, rate: float, num_photos: int, folder: Path) -> dict[str, object]:
    """One collection from a server that allows a rate of one kind of request."""
    from tests.sources.flickr_server import KEY, FlickrServer, shots
    from tests.sources.stand_in import RateLimit, Reply, Request, as_jpeg, jpeg

    pictures = case == "pictures"
    picture = {seed: jpeg(640, 480, seed) for seed in range(50)}

    class Distant(FlickrServer):
        def respond(self, request: Request) -> Reply:
            from dataclasses import replace

            if request.path.startswith("/pictures/"):
                number = int(request.path.rpartition("/")[2].partition("_")[0])
                # Bytes behind the end of a JPEG make files differ.
                body = picture[number % 50] + str(number).encode()
                return as_jpeg(body, delay_s=_PAUSE_S)
            return replace(super().respond(request), delay_s=_PAUSE_S)

    limit = RateLimit(rate, burst=5, when="/pictures/" if pictures else "/services/")
    server = Distant(
        shots(num_photos, _BOX, 5), limit=limit,
        cap=4000 if pictures else 12, most_per_page=250 if pictures else 4,
    )  # fmt: skip
    settings = {
        "source": "flickr", "source.api": server.api, "source.photo_hosts": "[127.0.0.1]",
        "source.result_cap": server.cap, "source.per_page": server.most_per_page,
        "source.uploaded_until": "2024-01-01", "targets": "null", "out": folder / case,
        "allow_private_hosts": "true", "on_quota": "stop", "retries": 20,
        "licenses": "auto" if pictures else "[google-places]",
        "rate_per_s": 1000 if pictures else rate, "photos_per_s": rate if pictures else 1000,
        "concurrency": 32, "downloads": 32,
    }  # fmt: skip
    with server:
        subprocess.run(
            [sys.executable, "-m", "geopak.collect", *(f"{k}={v}" for k, v in settings.items())],
            env={**os.environ, "FLICKR_API_KEY": KEY}, check=True, capture_output=True,
        )  # fmt: skip
        asked = server.asked("/pictures/" if pictures else "/services/")
    good = [record.time_s for record in asked if record.status == 200]
    seconds = max(good) - min(good)
    return conclusion(
        "collect", (len(good) - 1) / seconds, rate, TARGET, unit="requests/s", case=case,
        requests=len(good), refused=len(asked) - len(good),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--photos", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            measure(case, args.rate, args.photos, Path(folder)) for case in ("pictures", "queries")
        ]
    print_conclusions(lines)


if __name__ == "__main__":
    main()
