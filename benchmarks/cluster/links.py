"""How fast GPUs reach each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Bytes per second of one GPU, in one direction, as published."""

    name: str
    rate: float
    source: str


LINKS = {
    link.name: link
    for link in (
        Link("NVLink 3", 300e9, "NVIDIA A100 data sheet: 600 GB/s in both directions"),
        Link("NVLink 3 (A800)", 200e9, "NVIDIA, November 2022: 400 GB/s in both directions"),
        Link("NVLink 4", 450e9, "NVIDIA H100 and H200 data sheets: 900 GB/s in both directions"),
        Link("NVLink 5", 900e9, "NVIDIA Blackwell architecture brief: 1.8 TB/s in both directions"),
        Link("PCIe 4", 31.5e9, "PCI-SIG: 16 lanes of 16 GT/s, 128 bits in 130"),
        Link("PCIe 5", 63.0e9, "PCI-SIG: 16 lanes of 32 GT/s, 128 bits in 130"),
        Link("InfiniBand HDR", 25e9, "InfiniBand Trade Association: 4 lanes, 200 Gb/s"),
        Link("InfiniBand NDR", 50e9, "InfiniBand Trade Association: 4 lanes, 400 Gb/s"),
    )
}
