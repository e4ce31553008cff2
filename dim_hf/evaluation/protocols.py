"""Ways to score that are named in every table: what a case is, in which unit, and what an empty mask is worth."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """One way to score.

    Attributes:
        name: Key in `PROTOCOLS`.
        description: For captions.
        native: Score on the image's own grid; otherwise on the network's.
        volumes: Put the slices of a volume together before scoring.
        millimeters: Distances in mm where the spacing is known; otherwise always in pixels.
        empty_policy: Key in `metrics.empty_masks.EMPTY_POLICIES`.
    """

    name: str
    description: str
    native: bool
    volumes: bool
    millimeters: bool
    empty_policy: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "image",
            "each image or volume on its own grid, in mm where the spacing is known, else in pixels",
            native=True,
            volumes=False,
            millimeters=True,
            empty_policy="worst",
        ),
        Protocol(
            "volume-mm",
            "slices put together to the patients' volumes, on their own grid, in mm",
            native=True,
            volumes=True,
            millimeters=True,
            empty_policy="worst",
        ),
        Protocol(
            "network",
            "each image or volume at the network's size, in pixels: what a run scores at its end",
            native=False,
            volumes=False,
            millimeters=False,
            empty_policy="worst",
        ),
        Protocol(
            "midss-2d",
            "each 2D image at the network's size, in pixels, an empty prediction counts as 100 (as in MiDSS)",
            native=False,
            volumes=False,
            millimeters=False,
            empty_policy="legacy-100",
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
