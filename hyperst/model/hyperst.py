"""HyperST: image and gene features of spot, niche and wider levels, and the prediction head (Zhang et al. 2025, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from hyperst.data.crops import LEVELS
from hyperst.data.targets import Target
from hyperst.model.backbones import Normalisation, Tune, build_backbone, is_pretrained
from hyperst.model.likelihood import CountLikelihood, Likelihood
from hyperst.validation import STRICT, Count, Positive, Real

__all__ = ["HyperST", "ModelConfig", "orientations"]

Channels = Annotated[tuple[Real, Real, Real], Field(strict=False)]  # a list is welcome


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """What the model is made of.

    Attributes:
        backbone: "conv", "stain", "conv+stain", "precomputed", a published encoder ("uni", "uni2-h", "conch", "virchow2",
            "h-optimus-0", "gigapath", "phikon-v2", "resnet50", "efficientnet-lite0") or "timm:NAME"; see
            :func:`hyperst.model.backbones.build_backbone`.
        weights: local file of the weights (.bin, .pt, .pth, .safetensors) that a published encoder and "timm:NAME" need.
        timm_kwargs: keyword arguments of "timm:NAME", such as ``{init_values: 1.0e-05}``; layers by name (``SwiGLUPacked``).
        image_mean: mean per colour channel of the images that the encoder was trained on, of pixels in 0..1; None: what the
            encoder declares. A run records it.
        image_std: standard deviation of the same, given together with it.
        tune: what of an encoder with weights is trained: "frozen", nothing; "last-block", its last block or stage and what
            follows; "lora", low-rank adapters in a vision transformer; "full", all of it. Other backbones take none of it.
        width: width of the features (1024 in the paper).
        dropout: probability of dropout inside the residual MLPs.
        head_inputs: levels that the prediction head sees, "spot", "niche" or wider ones; None: all levels.
        head: what predicts: the "network" as trained (the paper), a regression fitted in "closed-form" on the features of its
            backbone once it is trained, or "both", mixed as validation spots say; see :mod:`hyperst.closed_form`.
        likelihood: what the network learns from: "gaussian", the squared error on the target's scale (the paper), or the raw counts
            with the spot's library size as exposure, "poisson" or "negative-binomial" with a learnt dispersion of each gene. What
            is predicted is on the target's scale either way; see :mod:`hyperst.model.likelihood`.
        average: "dihedral" predicts from the mean over the eight orientations of the crops, quarter turns and mirror images, which
            takes eight times as long and does not depend on how a slide was laid; "none" from the crops as they are.
        networks: how many networks are trained, each with initial weights, validation spots and an order of its own; what is
            predicted is the mean of their predictions (Lakshminarayanan et al., NeurIPS 2017), 1 in the paper. None: 6 with "conv"
            and "conv+stain", which are trained in minutes, else 1. A run records it.
    """

    backbone: str = "conv+stain"
    weights: str | None = None
    timm_kwargs: dict[str, Any] = field(default_factory=dict)
    image_mean: Channels | None = None
    image_std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] | None = None
    tune: Tune = "frozen"
    width: Count = 256
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.1
    head_inputs: Annotated[tuple[str, ...], Field(strict=False)] | None = None  # a list is welcome
    head: Literal["network", "closed-form", "both"] = "both"
    likelihood: Likelihood = "gaussian"
    average: Literal["none", "dihedral"] = "none"
    networks: Count | None = None

    def __post_init__(self) -> None:
        if self.tune != "frozen" and not is_pretrained(self.backbone):
            raise ValueError(
                f"model.tune is {self.tune!r}, which goes with an encoder that has weights, and model.backbone is "
                f"{self.backbone!r}; make it 'frozen' (--tune frozen)"
            )
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("model.image_mean and model.image_std go together: give both, or neither")

    def head_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """Which of ``levels``, those of the model, the prediction head sees.

        Raises:
            ValueError: ``head_inputs`` names none, or what is no level.
        """
        if self.head_inputs is None:
            return tuple(levels)
        known = ", ".join(map(repr, levels))
        if not self.head_inputs:
            raise ValueError(f"model.head_inputs must name at least one of {known}, got none")
        for number, level in enumerate(self.head_inputs):
            if level not in levels:
                raise ValueError(
                    f"model.head_inputs.{number} is {level!r}; need one of {known} (crop.wider_um adds levels)"
                )
        return self.head_inputs

    @property
    def n_networks(self) -> int:
        """``networks``, or how many None stands for."""
        if self.networks is not None:
            return self.networks
        return 6 if self.backbone in ("conv", "conv+stain") else 1

    @property
    def normalisation(self) -> Normalisation | None:
        """``image_mean`` and ``image_std``, or None where the encoder's own declaration is to be used."""
        return None if self.image_mean is None or self.image_std is None else (self.image_mean, self.image_std)


class ResidualMLP(nn.Module):
    """x + Mlp(LayerNorm(x)), Mlp = Linear(d, 2d), GELU, dropout, Linear(2d, d), dropout: (b, d) -> (b, d)."""

    def __init__(self, d: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.mlp = nn.Sequential(
            nn.Linear(d, 2 * d), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * d, d), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


def _encoder(d_in: int, d: int, dropout: float) -> nn.Sequential:
    """LayerNorm, Linear, two residual MLPs, LayerNorm; Xavier-uniform weights, zero biases."""
    blocks = [ResidualMLP(d, dropout) for _ in range(2)]
    encoder = nn.Sequential(nn.LayerNorm(d_in), nn.Linear(d_in, d), *blocks, nn.LayerNorm(d))
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return encoder


def _shared_projection(d: int) -> nn.Linear:
    projection = nn.Linear(d, d, bias=False)
    nn.init.normal_(projection.weight, std=d**-0.5)
    return projection


def orientations(batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The batch with its images (... h w) in each orientation of the square: by four quarter turns, each as it is and mirrored.

    >>> corner = torch.tensor([[[[1.0, 2], [3, 4]]]])
    >>> sorted(each["spot_image"].flatten().tolist() for each in orientations({"spot_image": corner}))[:2]
    [[1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]]
    """
    images = [name for name in batch if name.endswith("_image")]
    for turns in range(4):
        turned = {name: torch.rot90(batch[name], turns, (-2, -1)) for name in images}
        yield {**batch, **turned}
        yield {**batch, **{name: image.flip(-1) for name, image in turned.items()}}


class HyperST(nn.Module):
    """Image and gene features of each level, and expression predicted from the image alone.

    ``forward(batch)`` takes "spot_image", "niche_image" (b 3 h w) (or "spot_features", "niche_features" (b w)) and, for
    training, "spot_expression", "niche_expression" (b n_genes). Returns "image_spot", "image_niche", "gene_spot",
    "gene_niche" (b width; Euclidean, not yet lifted), "output" (b n_genes), what the likelihood takes, and "prediction"
    (b n_genes) on the scale of ``target``, the same where there is no likelihood of counts. ``levels`` from narrow to wide; those
    of the paper are spot and niche, and each further one has its own projectors and encoders.

    >>> model = HyperST(5, ModelConfig(backbone="precomputed", width=8), backbone_width=12)
    >>> model.predict({"spot_features": torch.randn(2, 12), "niche_features": torch.randn(2, 12)}).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        n_genes: int,
        config: ModelConfig,
        *,
        levels: Sequence[str] = LEVELS,
        target: Target = "log1p_cp10k",
        backbone_width: int | None = None,
        image_size: int = 224,
        strict_weights: bool = True,
    ) -> None:
        super().__init__()
        if n_genes < 1:
            raise ValueError(f"n_genes must be at least 1, got {n_genes}")
        d = config.width
        self.config, self.levels = config, tuple(levels)
        self.head_levels = config.head_levels(self.levels)
        self.backbone = build_backbone(
            config.backbone,
            weights=config.weights,
            tune=config.tune,
            image_size=image_size,
            width=backbone_width,
            timm_kwargs=config.timm_kwargs,
            normalisation=config.normalisation,
            strict=strict_weights,
        )
        self.image_projectors = nn.ModuleDict({level: nn.Linear(self.backbone.width, d) for level in self.levels})
        self.gene_projectors = nn.ModuleDict({level: nn.Linear(n_genes, d) for level in self.levels})
        self.image_encoders = nn.ModuleDict({level: _encoder(d, d, config.dropout) for level in self.levels})
        self.gene_encoders = nn.ModuleDict({level: _encoder(d, d, config.dropout) for level in self.levels})
        self.image_projection, self.gene_projection = _shared_projection(d), _shared_projection(d)
        self.head = _encoder(len(self.head_levels) * d, d, config.dropout)
        self.output = nn.Linear(d, n_genes)
        counts = config.likelihood != "gaussian"
        self.likelihood = CountLikelihood(n_genes, config.likelihood, target) if counts else None

    def initialise_output(self, mean: Tensor) -> None:
        """Start the output at ``mean`` (n_genes), usually that of the training spots."""
        with torch.no_grad():
            self.output.bias.copy_(mean)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self._image_features(self._raw(batch))
        outputs["output"] = self._output(outputs)
        taught = torch.is_grad_enabled() and self.likelihood is None  # else the output itself learns, from counts
        with torch.set_grad_enabled(taught):
            outputs["prediction"] = self._on_target_scale(outputs["output"])
        for level in self.levels:
            if f"{level}_expression" in batch:
                genes = self.gene_projectors[level](batch[f"{level}_expression"])
                outputs[f"gene_{level}"] = self.gene_projection(self.gene_encoders[level](genes))
        return outputs

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Expression (b n_genes) from images alone, on the scale the model was trained on."""
        return self.encode_images(batch)["prediction"]

    def predict_with_features(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What :meth:`predict` gives, and the backbone's features of all levels side by side, (b level*width)."""
        found = self.encode_images(batch)
        return found["prediction"], found["features"]

    def encode_images(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`predict_with_features` gives as "prediction" and "features", and "image_spot" (b width) as `forward` does.

        With ``average="dihedral"`` each is its mean over the orientations of the crops.
        """
        if self.config.average == "none":
            return self._encode_images(batch)
        found = [self._encode_images(turned) for turned in orientations(batch)]
        return {name: torch.stack([each[name] for each in found]).mean(dim=0) for name in found[0]}

    def _encode_images(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raw = self._raw(batch)
        images = self._image_features(raw)
        return {
            "prediction": self._on_target_scale(self._output(images)),
            "features": rearrange(raw, "level b width -> b (level width)"),
            "image_spot": images["image_spot"],
        }

    def _on_target_scale(self, output: Tensor) -> Tensor:
        return output if self.likelihood is None else self.likelihood.expected_target(output)

    def _output(self, features: dict[str, Tensor]) -> Tensor:
        levels = [features[f"image_{level}"] for level in self.head_levels]
        return self.output(self.head(rearrange(levels, "level b width -> b (level width)")))

    def _raw(self, batch: dict[str, Tensor]) -> Tensor:
        """The backbone's features (level b width)."""
        kind = "features" if "spot_features" in batch else "image"
        images = [batch[f"{level}_{kind}"] for level in self.levels]
        # one backbone for all levels, in one call
        raw = self.backbone(rearrange(images, "level b ... -> (level b) ..."))
        return rearrange(raw, "(level b) width -> level b width", level=len(self.levels))

    def _image_features(self, raw: Tensor) -> dict[str, Tensor]:
        return {
            f"image_{level}": self.image_projection(self.image_encoders[level](self.image_projectors[level](x)))
            for level, x in zip(self.levels, raw, strict=True)
        }
