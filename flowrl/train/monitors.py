"""What a reward does not see: diversity within a prompt and simple image statistics.

A policy that games its reward usually shows here first: one picture for every noise, lost edges, a single colour. All functions take
pictures ``(batch, 3, height, width)`` with values in [0, 1], or videos ``(batch, frame, 3, height, width)``, of which they measure every
frame and give the mean.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

COLOUR_LEVELS = 4  # levels per channel of the colour histogram: 4 * 4 * 4 cells
SOBEL_SIDE = 3  # pixels
VIDEO_AXES = 5
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def pairwise_diversity(images: Tensor) -> Tensor:
    """Return the mean distance between the pictures of one prompt, a scalar in [0, 1].

    The distance of two pictures is the root of the mean squared difference over channels, pixels and frames; the mean runs over all pairs.

    Args:
        images: Pictures of one prompt, at least two.

    Raises:
        ValueError: If there are fewer than two pictures.
    """
    check_pictures(images)
    if len(images) <= 1:
        raise ValueError(f"diversity needs at least two images of a prompt, got {len(images)}; set images_per_prompt to 2 or more")
    pixels = images.flatten(1).double()
    return torch.pdist(pixels).mean() / pixels.shape[1] ** 0.5


def within_prompt_diversity(images: Tensor, prompt_ids: Tensor) -> Tensor:
    """Return the diversity of every prompt ``(prompt,)``, in ascending order of the ids; NaN where a prompt has a single picture.

    Args:
        images: Pictures of several prompts.
        prompt_ids: Which prompt each picture belongs to, ``(batch,)``.

    Raises:
        ValueError: If the number of ids is not the number of pictures.
    """
    check_pictures(images)
    if prompt_ids.shape != images.shape[:1]:
        raise ValueError(f"prompt_ids must have one entry per image, got {tuple(prompt_ids.shape)} for {len(images)} images")
    alone = images.new_full((), float("nan"), dtype=torch.float64)
    members = [images[prompt_ids == prompt] for prompt in prompt_ids.unique()]
    return torch.stack([pairwise_diversity(group) if len(group) > 1 else alone for group in members])


def edge_density(images: Tensor) -> Tensor:
    """Return the mean magnitude of the brightness gradient ``(batch,)``, in brightness per pixel.

    Sobel filters divided by 8 on BT.601 luma, interior pixels only, so a ramp that rises by ``a`` per pixel has density ``a``.

    Args:
        images: Pictures of at least 3 x 3 pixels.

    Raises:
        ValueError: If the pictures are smaller.
    """
    check_pictures(images)
    if images.ndim == VIDEO_AXES:
        return torch.stack([edge_density(video).mean() for video in images])
    if min(images.shape[-2:]) < SOBEL_SIDE:
        raise ValueError(f"edge density needs pictures of at least 3 x 3 pixels, got {tuple(images.shape[-2:])}")
    luma = (images.float() * images.new_tensor(LUMA, dtype=torch.float32).view(1, 3, 1, 1)).sum(1, keepdim=True)
    across = luma.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    gradient = conv2d(luma, torch.stack([across, across.T]).unsqueeze(1))
    return gradient.norm(dim=1).mean(dim=(1, 2))


def colour_entropy(images: Tensor) -> Tensor:
    """Return the entropy of the colour histogram ``(batch,)``, in nats: 0 for one flat colour, ln 64 = 4.16 for all cells alike.

    The histogram has 4 x 4 x 4 equal cells of the RGB cube.
    """
    check_pictures(images)
    if images.ndim == VIDEO_AXES:
        return torch.stack([colour_entropy(video).mean() for video in images])
    levels = (images.float() * COLOUR_LEVELS).long().clamp(0, COLOUR_LEVELS - 1)
    cell = (levels[:, 0] * COLOUR_LEVELS + levels[:, 1]) * COLOUR_LEVELS + levels[:, 2]
    first_cell = torch.arange(len(images), device=cell.device).view(-1, 1, 1) * COLOUR_LEVELS**3
    counts = torch.bincount((cell + first_cell).flatten(), minlength=len(images) * COLOUR_LEVELS**3)
    share = counts.view(len(images), -1).double() / cell[0].numel()
    return torch.special.entr(share).sum(1)


def check_pictures(images: Tensor) -> None:
    """Refuse what is neither a batch of colour pictures nor one of videos.

    Raises:
        ValueError: If the shape is neither ``(batch, 3, height, width)`` nor ``(batch, frame, 3, height, width)``.
    """
    match tuple(images.shape):
        case (_, 3, _, _) | (_, _, 3, _, _):
            return
        case shape:
            raise ValueError(
                f"images must have shape (batch, 3, height, width), got {shape}; repeat a grey channel three times, and give videos as "
                "(batch, frame, 3, height, width)"
            )
