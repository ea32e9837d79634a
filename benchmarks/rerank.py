"""Times re-ranking of a trained model at several k, beside what its matching function could do alone.

    python benchmarks/rerank.py runs/NAME --k 16 64 128 256
    python benchmarks/rerank.py runs/NAME --split test --images 200 --score itm --json

Pictures and captions are encoded once. At each k the pairs of both directions are scored (a pair that both ask for,
once), ranked and counted; mean recall by every score formula, R@1 by that of `--score`. The bound is the matching
function over and over on one batch of pairs, with no result read.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks.command import finish
from configs import evaluate as evaluation_config
from maskvlm_jax.evaluators import encoding, ranking, retrieval
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import ScoresPairs, TrainsEmbeddings
from maskvlm_jax.runtime import host
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.training import scoring

BOUND_BATCHES, BOUND_ROUNDS = 8, 3


def bound(predictor: Predictor, image_ISD: np.ndarray, text_TLD: np.ndarray, valid_TL: np.ndarray) -> float:
    """Pairs per second of the matching function alone: the best of several rounds."""
    images = predictor.prepare_images(image_ISD[: encoding.IMAGE_BLOCK])
    texts = predictor.prepare_texts(text_TLD[: encoding.TEXT_BLOCK], valid_TL[: encoding.TEXT_BLOCK])
    size, rng = predictor.pair_batch(encoding.PAIR_BATCH), np.random.default_rng(0)
    counts = min(len(image_ISD), encoding.IMAGE_BLOCK), min(len(text_TLD), encoding.TEXT_BLOCK)
    ids = [rng.integers(count, size=size) for count in counts]
    ids[0].sort()  # picture by picture, as they are asked for
    jax.block_until_ready(predictor.match(images, texts, *ids))
    rates = []
    for _ in range(BOUND_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready([predictor.match(images, texts, *ids) for _ in range(BOUND_BATCHES)])
        rates.append(BOUND_BATCHES * size / (time.perf_counter() - start))
    return max(rates)


def run(checkpoint: str, *, split: str, images: int, ks: list[int], score: str) -> dict[str, Any]:
    """All measurements by name; times in seconds, recalls in percent.

    Raises:
        UserError: no such checkpoint, or its model has no contrastive space or no matching head.
    """
    config = evaluation_config.get_config()
    config.checkpoint = checkpoint
    if images:
        config.evaluation.limit = images
    with scoring.loaded(config) as (trained, evaluation, params, _):
        predictor, batch_size = evaluation.predictor(params), trained.evaluation.batch_size
        if not (predictor.offers(TrainsEmbeddings) and predictor.offers(ScoresPairs)):
            raise UserError(f"{checkpoint} was not trained with a contrastive and a matching objective")
        data = evaluation.run.data(split or trained.evaluation.split)
        encoding.encode_images(predictor, data.first(1), batch_size)  # compiles
        encoding.encode_texts(predictor, data.first(1), batch_size)
        start = time.perf_counter()
        image_ISD, image_IE = encoding.encode_images(predictor, data, batch_size)
        text_TLD, text_TE = encoding.encode_texts(predictor, data, batch_size)
        encoded = time.perf_counter() - start
        valid_TL, owner, cosine_IT = data.text["token_valid"], data.image_of_caption, image_IE @ text_TE.T
        image_ranks = ranking.image_to_text_ranks(cosine_IT, owner)
        text_ranks = ranking.text_to_image_ranks(cosine_IT, owner)
        temperature = predictor.temperature()
        fastest = bound(predictor, image_ISD, text_TLD, valid_TL)
        rows = []
        for k in ks:
            start = time.perf_counter()
            top_texts_IT, top_images_IT = ranking.top_k(cosine_IT, k), ranking.top_k(cosine_IT.T, k).T
            wanted_IT = top_texts_IT | top_images_IT
            match_IT = encoding.match_scores(predictor, image_ISD, text_TLD, valid_TL, wanted_IT)
            tops = top_texts_IT, top_images_IT
            stages = retrieval.TwoStages(cosine_IT, match_IT, *tops, owner, temperature, image_ranks, text_ranks)
            recalls = stages.recalls(score)
            seconds, pairs = time.perf_counter() - start, int(wanted_IT.sum())
            by_score = {name: stages.recalls(name)["rerank_mean_recall"] for name in retrieval.SCORES}
            rows.append({"k": k, "pairs": pairs, "seconds": seconds, "pairs_per_second": pairs / seconds, **recalls})
            rows[-1]["mean_recalls"] = by_score
    return {
        "device": jax.devices()[0].device_kind,
        "cores": host.cores(),
        "images": len(data.images),
        "captions": len(data.captions),
        "encode_seconds": encoded,
        "bound_pairs_per_second": fastest,
        "score": score,
        "contrastive": ranking.recalls(image_ranks, text_ranks),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    first = result["contrastive"]
    lines = [
        f"{result['images']:,} pictures x {result['captions']:,} captions on {result['device']}, "
        f"{result['cores']} cores; encoded in {result['encode_seconds']:.1f} s; "
        f"matching alone: {result['bound_pairs_per_second']:,.0f} pairs/s",
        "",
        f"| k | pairs | seconds | pairs/s | of matching alone | t2i R@1 by {result['score']} | i2t R@1 | mean by "
        + " | by ".join(retrieval.SCORES)
        + " |",
        "|---" * (7 + len(retrieval.SCORES)) + "|",
        f"| none | | | | | {first['t2i_r1']:.1f} | {first['i2t_r1']:.1f}"
        + f" | {first['mean_recall']:.1f}" * len(retrieval.SCORES)
        + " |",
    ]
    for row in result["rows"]:
        share = row["pairs_per_second"] / result["bound_pairs_per_second"]
        recalls = " | ".join(f"{row[f'rerank_{name}']:.1f}" for name in ("t2i_r1", "i2t_r1"))
        recalls += "".join(f" | {value:.1f}" for value in row["mean_recalls"].values())
        lines.append(
            f"| {row['k']} | {row['pairs']:,} | {row['seconds']:.1f} | {row['pairs_per_second']:,.0f} | "
            f"{share:.0%} | {recalls} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Reads the flags, measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="workdir of a run")
    parser.add_argument("--split", default="", help="the run's evaluation.split by default")
    parser.add_argument("--images", type=int, default=0, help="score the first ones alone; 0 = all")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64, 128, 256], help="candidates of each direction")
    parser.add_argument("--score", choices=retrieval.SCORES, default="itm+itc", help="formula of R@1")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if min(args.k) < 1:
        parser.error("--k must be 1 or more")
    host.quiet_libraries()
    host.prepare_accelerator()
    return finish(
        lambda: run(args.checkpoint, split=args.split, images=args.images, ks=args.k, score=args.score),
        table,
        as_json=args.json,
    )


if __name__ == "__main__":
    host.use_huge_pages()
    sys.exit(main())
