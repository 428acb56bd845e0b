"""The ranking loss for sentence-transformers: through its interface with a stub, and beside the library where it is installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.torchvision_of_another_build import prepare_torchvision
from hyperst_kernels import pairwise_distance
from hyperst_kernels.interop.sentence_transformers import HyperbolicRankingLoss
from tests.kernels import ranks


@pytest.fixture(name="library")
def _library():
    """sentence_transformers, also beside a torchvision of another build than PyTorch."""
    prepare_torchvision()
    reason = "sentence_transformers is not installed; `make loops` runs these tests with it"
    return pytest.importorskip("sentence_transformers", reason=reason)


class Embed(nn.Module):
    """A model as the losses see one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 9).double()

    def forward(self, features):
        return {"sentence_embedding": self.layer(features["x"])}


def columns(number: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"x": torch.randn(6, 5, dtype=torch.float64)} for _ in range(number)]


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("embedding_scale", [None, 0.5])
def test_the_loss_is_cross_entropy_over_minus_the_distances(number, embedding_scale):
    model = Embed()
    loss = HyperbolicRankingLoss(model, 7.0, embedding_scale=embedding_scale, curvature=0.6)
    anchor, *documents = [model(column)["sentence_embedding"] for column in columns(number)]
    factor = 1 / 3 if embedding_scale is None else embedding_scale
    distances = pairwise_distance(anchor * factor, torch.cat(documents) * factor, 0.6, input="tangent")
    want = nn.functional.cross_entropy(-7 * distances, torch.arange(6))
    value = loss(columns(number), None)
    torch.testing.assert_close(value, want)
    grads = torch.autograd.grad(value, list(model.parameters()))
    torch.testing.assert_close(grads, torch.autograd.grad(want, list(model.parameters())), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss.similarity(anchor, torch.cat(documents)), -distances)


def test_it_holds_the_model_and_says_what_it_is():
    loss = HyperbolicRankingLoss(Embed(), 7.0)
    assert [name for name, _ in loss.named_parameters()] == ["model.layer.weight", "model.layer.bias"]
    assert loss.get_config_dict() == {
        "scale": 7.0,
        "gather_across_devices": False,
        "embedding_scale": None,
        "curvature": 1.0,
    }
    assert "scale=7.0" in repr(loss)
    with pytest.raises(ValueError, match="anchors and positives, got 1 columns"):
        loss(columns(1))
    for options, said in (
        ({"scale": 0.0}, "^scale must be positive"),
        ({"embedding_scale": -1.0}, "embedding_scale must be positive"),
        ({"curvature": -1.0}, "curvature must be positive .* pass c = 1"),
    ):
        with pytest.raises(ValueError, match=said):
            HyperbolicRankingLoss(Embed(), **options)


def of_rank(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    loss = HyperbolicRankingLoss(Embed(), gather_across_devices=True)
    mine = [{"x": column["x"][3 * rank : 3 * rank + 3]} for column in columns(3)]
    value = loss(mine)
    value.backward()
    return value.detach(), loss.model.layer.weight.grad


def test_two_processes_share_their_documents(tmp_path):
    found = ranks.raised(ranks.run(2, tmp_path, {"of_rank": of_rank})["of_rank"])
    loss = HyperbolicRankingLoss(Embed())
    value = loss(columns(3))
    value.backward()
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, value.detach())
    torch.testing.assert_close((found[0][1] + found[1][1]) / 2, loss.model.layer.weight.grad)


def sentences(library):
    """A model of one embedding for each word, and eight questions with their answers, a word each."""
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"{kind}{i}" for kind in "aq" for i in range(8)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "?"])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    model = library.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    return model, [f"q{i}" for i in range(8)], [f"a{i}" for i in range(8)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_trains_a_sentence_transformer_and_evaluates_by_distance(library):
    from sentence_transformers.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model, questions, answers = sentences(library)
    loss = HyperbolicRankingLoss(model)
    theirs = MultipleNegativesRankingLoss(model, scale=20.0, similarity_fct=loss.similarity)
    batch = [model.tokenize(questions), model.tokenize(answers)]
    torch.testing.assert_close(loss(batch, None), theirs(batch, None))
    evaluate = InformationRetrievalEvaluator(
        dict(zip("01234567", questions, strict=True)),
        dict(zip("01234567", answers, strict=True)),
        {i: {i} for i in "01234567"},
        score_functions={"hyperbolic": loss.similarity},
        write_csv=False,
        **{name: [1] for name in ("mrr_at_k", "ndcg_at_k", "accuracy_at_k", "precision_recall_at_k", "map_at_k")},
    )
    before = evaluate(model)["hyperbolic_accuracy@1"]
    steps = torch.optim.Adam(loss.parameters(), 0.1)
    for _ in range(30):
        steps.zero_grad()
        loss(batch).backward()
        steps.step()
    assert before < 0.6
    assert evaluate(model)["hyperbolic_accuracy@1"] == 1
