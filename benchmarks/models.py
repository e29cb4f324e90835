"""Compact beside DnCNN and FFDNet: colour noise by the same protocol, on the same machine.

    python -m benchmarks.models --weights FOLDER kodak24.parquet

FOLDER holds `dncnn_color_blind.safetensors` and `ffdnet_color.safetensors` in KAIR's layout: DnCNN (Zhang et al. 2017)
is blind, 20 convolutions of 64 channels; FFDNet (Zhang et al. 2018) is told the noise, 12 convolutions of 96 channels
on pixel-unshuffled input. They run in the same precision as compact does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.damage.planes import as_pixels
from pipeline.evaluation.protocols import Case, denoise
from pipeline.evaluation.tables import Sample, read_samples
from pipeline.lake.tables import open_tables
from pipeline.quality.scores import psnr
from pipeline.restoration.precision import autocast
from pipeline.restoration.restorer import Restorer

Denoiser = Callable[[Case], np.ndarray]


def chain(path: Path) -> nn.Sequential:
    """Convolutions of 3 x 3 with rectifiers between them, from `model.N.weight` and `model.N.bias`."""
    tensors = load_file(path)
    numbers = sorted({int(name.split(".")[1]) for name in tensors})
    layers: list[nn.Module] = []
    for number in numbers:
        weight = tensors[f"model.{number}.weight"]
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        layer.load_state_dict({"weight": weight, "bias": tensors[f"model.{number}.bias"]})
        layers += [layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1]).eval().to(memory_format=torch.channels_last)


def planes(case: Case) -> Tensor:
    """[1, 3, H, W] as it was measured, not clipped."""
    image = torch.from_numpy(np.ascontiguousarray(case.request.pixels)).permute(2, 0, 1)[None]
    return image.float().contiguous(memory_format=torch.channels_last)


def dncnn(folder: Path, device: torch.device) -> Denoiser:
    """The noise is what the network returns."""
    network = chain(folder / "dncnn_color_blind.safetensors").to(device)

    def run(case: Case) -> np.ndarray:
        image = planes(case).to(device)
        with torch.inference_mode(), autocast(device):
            return as_pixels(image - network(image).float())

    return run


def ffdnet(folder: Path, device: torch.device) -> Denoiser:
    """Told the true sigma."""
    network = chain(folder / "ffdnet_color.safetensors").to(device)

    def run(case: Case) -> np.ndarray:
        assert case.damage is not None
        image = planes(case).to(device)
        height, width = image.shape[-2:]
        folded = F.pixel_unshuffle(F.pad(image, (0, width % 2, 0, height % 2), mode="replicate"), 2)
        sigma = folded.new_full((1, 1, *folded.shape[-2:]), case.damage.noise_sigma / 255)
        with torch.inference_mode(), autocast(device):
            out = network(torch.cat([folded, sigma], dim=1).contiguous(memory_format=torch.channels_last))
        return as_pixels(F.pixel_shuffle(out.float(), 2)[..., :height, :width])

    return run


def compact(model: str, device: torch.device) -> Denoiser:
    """One image at a time, as the others."""
    restorer = Restorer.from_pretrained(model, device=device)
    return lambda case: restorer.restore_batch([case.request])[0].pixels


def measure(denoisers: dict[str, Denoiser], samples: Sequence[Sample], sigmas: Sequence[float]) -> list[dict[str, Any]]:
    """Mean PSNR of each at each sigma, and megapixels a second: turn about, the first image not counted."""
    rows = []
    for sigma in sigmas:
        found: dict[str, list[float]] = {name: [] for name in denoisers}
        seconds: dict[str, list[float]] = {name: [] for name in denoisers}
        for case in denoise(samples, sigma):
            for name, denoiser in denoisers.items():
                started = time.perf_counter()
                result = denoiser(case)
                seconds[name].append((time.perf_counter() - started) / result[..., 0].size)
                found[name].append(psnr(result, case.truth))
        for name in denoisers:
            speed = 1e-6 / float(np.median(seconds[name][1:] or seconds[name]))
            rows.append({"denoiser": name, "sigma": sigma, "psnr": float(np.mean(found[name])), "mp_per_s": speed})
    return rows


def main() -> None:
    """Print the table; with --output also JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Parquet table of undamaged images")
    parser.add_argument("--weights", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--sigma", type=float, nargs="+", default=[15, 25, 50])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    denoisers = {
        "compact": compact(arguments.model, device),
        "DnCNN": dncnn(arguments.weights, device),
        "FFDNet, told sigma": ffdnet(arguments.weights, device),
    }
    rows = measure(denoisers, read_samples(open_tables([arguments.data]), arguments.limit), arguments.sigma)
    print("| denoiser | sigma | PSNR | MP/s |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['denoiser']} | {row['sigma']:g} | {row['psnr']:.2f} | {row['mp_per_s']:.2f} |")
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
