"""What low-resolution and misaligned faces look like, for whole batches on their device.

Alignment errors, defocus, motion blur, sensor noise and JPEG. Each is a function of images x, float32 [B, 3, H, W] in
[-1, 1], and of random numbers in [0, 1), one per image and parameter, [B]. Each returns images of the same shape and
range. The host never waits for the device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from data.counter_random import keys_from, uniform
from data.images import SIZE

# If a face is 16 pixels wide, and the five points that align it have a standard deviation of one such pixel (7 of 112),
# then the fitted transform has standard deviations of 8 degrees, 13 percent and 3 pixels. These ranges are narrower.
MAX_ANGLE, MAX_SCALE, MAX_SHIFT = math.radians(10), 1.2, 5.0  # shift in pixels
# Radius of the disk that a point becomes, in pixels. ImageNet-C (Hendrycks, Dietterich, ICLR 2019) has 3 to 6 at
# severity 1 to 3, for images of 224 pixels. Below 1 nearly nothing changes.
MIN_RADIUS, MAX_RADIUS = 1.0, 3.0
# Length of the line that a point becomes, in pixels. A face of 112 pixels is about 15 cm wide, and a person who walks
# (1.4 m/s) moves by 1.5 cm in 1/90 s, a usual exposure time indoors.
MIN_LENGTH, MAX_LENGTH = 3.0, 11.0
# Variance of the noise per unit of light, from Brooks and others, "Unprocessing images for learned raw denoising", CVPR
# 2019. `read` in sensor_noise is from the same paper: its mean in cameras with this `shot`.
MIN_SHOT, MAX_SHOT = 0.0001, 0.012
GAMMA = 2.2  # pixels are about the light to the power 1 / 2.2
MIN_QUALITY, MAX_QUALITY = 30, 95  # of JPEG, as in Real-ESRGAN and BSRGAN (both ICCV 2021)


def similarity(x: Tensor, angle: Tensor, scale: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Rotate, scale and shift each image about its center. What comes from outside is black, as if aligned like this.

    By -10 to 10 degrees, to 1 / 1.2 to 1.2 times the size, and by -5 to 5 pixels to the right and down (bilinear).
    """
    angle, scale = (2 * angle - 1) * MAX_ANGLE, torch.exp((2 * scale - 1) * math.log(MAX_SCALE))
    shift = (2 * torch.stack([right, down], 1) - 1) * (MAX_SHIFT * 2 / x.shape[3])  # 2: from border to border
    cos, sin = angle.cos() / scale, angle.sin() / scale
    back = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)  # from the place of a new pixel to that of the old one
    matrices = torch.cat([back, -back @ shift[:, :, None]], 2)
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return (F.grid_sample(x + 1, grid, align_corners=False) - 1).clamp(-1, 1)


def defocus(x: Tensor, radius: Tensor) -> Tensor:
    """Blur with a disk of a radius of 1 to 3 pixels."""
    radius = MIN_RADIUS + (MAX_RADIUS - MIN_RADIUS) * radius
    along_x, along_y = _offsets(math.ceil(MAX_RADIUS + 0.5) - 1, x.device)
    return _blur(x, (radius[:, None, None] + 0.5 - torch.hypot(along_x, along_y)).clamp(0, 1))


def motion_blur(x: Tensor, length: Tensor, angle: Tensor) -> Tensor:
    """Blur along a line of 3 to 11 pixels, in any direction."""
    length = (MIN_LENGTH + (MAX_LENGTH - MIN_LENGTH) * length)[:, None, None]
    angle = (math.pi * angle)[:, None, None]
    along_x, along_y = _offsets(math.ceil(MAX_LENGTH / 2 + 0.5), x.device)
    along = along_x * angle.cos() + along_y * angle.sin()
    across = along_y * angle.cos() - along_x * angle.sin()
    return _blur(x, (length / 2 + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp_min(0))


def sensor_noise(x: Tensor, strength: Tensor, seed: Tensor) -> Tensor:
    """Add the noise of photons and of the electronics, independent for each pixel and colour.

    The variance is shot * light + read. The noise depends only on `seed`.
    """
    shot = (MIN_SHOT * torch.exp(strength * math.log(MAX_SHOT / MIN_SHOT)))[:, None, None, None]
    read = math.exp(1.2) * shot**2.18
    batch, channels, height, width = x.shape
    normal = math.sqrt(2) * torch.erfinv(2 * uniform(keys_from(seed[:, None]), channels * height * width) - 1)
    normal = normal.view(batch, height, width, channels).permute(0, 3, 1, 2)  # in memory like x, channels-last
    light = ((x + 1) / 2) ** GAMMA
    light = (light + (shot * light + read).sqrt() * normal).clamp(0, 1)
    return 2 * light ** (1 / GAMMA) - 1


class Jpeg:
    """jpeg(x, quality): write and read each image as JPEG with a quality of 30 to 95, with libjpeg's defaults.

    That is: colours at half the resolution, integers after every stage, and colours enlarged bilinearly. The images
    must be 112 pixels wide and high.
    """

    def __init__(self, device: torch.device) -> None:
        self._tables = quantisation_tables().to(device)
        self._dct = torch.block_diag(*[dct_matrix()] * (SIZE // 8)).to(device)  # of all blocks of a line of pixels
        self._colours, self._back = (matrix.to(device) for matrix in (colour_matrix(), colour_matrix().inverse()))
        self._round_up = torch.tensor([0.25, 0.5]).repeat(SIZE // 4).to(device)  # halves in every second column

    def __call__(self, x: Tensor, quality: Tensor) -> Tensor:
        tables = self._tables[(quality * len(self._tables)).long()]  # [B, 2, 8, 8]
        x = _mix_colours((127.5 * x + 127.5).round(), self._colours).round()
        luma, colours = x[:, :1] - 128, (F.avg_pool2d(x[:, 1:], 2) + self._round_up).floor()
        luma, colours = self._compress(luma, tables[:, 0]) + 128, self._compress(colours, tables[:, 1])
        colours = F.interpolate(colours, scale_factor=2, mode="bilinear", align_corners=False).round()
        x = _mix_colours(torch.cat([luma, colours], 1), self._back)
        return (x.round().clamp(0, 255) - 127.5) / 127.5

    def _compress(self, x: Tensor, tables: Tensor) -> Tensor:
        """Round the coefficients of all blocks of x [B, C, H, H] to multiples of `tables` [B, 8, 8].

        x is in -128 to 127.
        """
        side = x.shape[3]
        dct, steps = self._dct[:side, :side], tables.repeat(1, side // 8, side // 8)[:, None]
        coefficients = dct @ x @ dct.t() / steps
        # Halves are rounded away from 0, also if they are a little smaller, as the integers of libjpeg make them.
        coefficients = (coefficients + 0.501 * coefficients.sign()).trunc() * steps
        return (dct.t() @ coefficients @ dct).round().clamp(-128, 127)


def quantisation_tables() -> Tensor:
    """The steps of JPEG's coefficients by quality, for luma and colours: float32 [66, 2, 8, 8] for quality 30 to 95.

    The tables of the standard (ITU-T T.81, annex K), scaled as libjpeg does.
    """
    luma = [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ]  # fmt: skip
    chroma = torch.full((8, 8), 99)
    chroma[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
    quality = torch.arange(MIN_QUALITY, MAX_QUALITY + 1)[:, None, None, None]
    percent = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((torch.stack([torch.tensor(luma), chroma]) * percent + 50) // 100).clamp(1, 255).float()


def dct_matrix() -> Tensor:
    """The orthonormal discrete cosine transform of 8 numbers, float32 [8, 8]."""
    frequency, place = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def colour_matrix() -> Tensor:
    """RGB to luma and the two colour differences of JPEG (JFIF, without the offset of 128), float32 [3, 3]."""
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    blue, red = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    return torch.stack([luma, (blue - luma) / 1.772, (red - luma) / 1.402]).float()


def _mix_colours(x: Tensor, matrix: Tensor) -> Tensor:
    """Each of the 3 colours of x [B, 3, H, W] becomes a sum of all: matrix [3, 3]."""
    return torch.einsum("oc,bchw->bohw", matrix, x)


def _offsets(reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Distances from the center of a kernel in x [1, K, K] and y [1, K, K], for K = 2 * reach + 1."""
    line = torch.arange(-reach, reach + 1, dtype=torch.float32, device=device)
    return line[None, None, :].expand(1, len(line), -1), line[None, :, None].expand(1, -1, len(line))


def _blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Filter each image with its kernel, [B, K, K], whose sum is made 1. Pixels at the border continue outside."""
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    reach = kernels.shape[2] // 2
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate").transpose(0, 1)  # images as channels
    return F.conv2d(padded, kernels[:, None], groups=len(x)).transpose(0, 1).clamp(-1, 1)
