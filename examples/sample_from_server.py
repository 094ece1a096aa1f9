"""A trainer of another project samples a group from `etude serve`, token by token, and checks the logprobs.

    etude serve smollm2-135m --port 8080
    python examples/sample_from_server.py --url http://127.0.0.1:8080 --check smollm2-135m

Needs nothing but Python for sampling. `--check` loads the same model here, as a learner does, and scores the
very ids that came back: log p(token | tokens before it) must be what the server said when it drew them.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from statistics import fmean, pstdev
from typing import Any

QUESTION = "How many legs do three cats have? Answer with a number."


def post(url: str, body: dict[str, Any], key: str | None = None) -> Any:
    """JSON in, JSON out."""
    headers = {"Content-Type": "application/json"} | (
        {} if key is None else {"Authorization": f"Bearer {key}"}
    )
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def reward(text: str) -> float:
    """Of one answer."""
    return float("12" in text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", help="API key of the server")
    parser.add_argument("--n", type=int, default=8, help="answers of the group")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--check", metavar="MODEL", help="score the answers with this model, here")
    args = parser.parse_args(argv)

    # 1. the prompt as token ids: from here on ids are the truth, and text is a view
    messages = [{"role": "user", "content": QUESTION}]
    prompt_ids = post(f"{args.url}/tokenize", {"messages": messages}, args.key)["tokens"]

    # 2. a group: plain sampling at temperature 1, logprobs of the distribution that was sampled from
    params = {"n": args.n, "temperature": 1.0, "max_tokens": args.max_tokens, "logprobs": 0, "seed": 1}
    body = {"token_ids": prompt_ids, "sampling_params": params}
    choices = post(f"{args.url}/inference/v1/generate", body, args.key)["choices"]

    # 3. rewards, and advantages within the group
    texts = [
        post(f"{args.url}/detokenize", {"tokens": one["token_ids"]}, args.key)["content"] for one in choices
    ]
    rewards = [reward(text) for text in texts]
    spread = pstdev(rewards) or 1.0
    for choice, text, value in zip(choices, texts, rewards, strict=True):
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        advantage = (value - fmean(rewards)) / spread
        versions = ",".join(span["version"] for span in choice["weight_versions"])
        print(f"weights {versions}  {len(logprobs):3} tokens, {choice['finish_reason']:6}", end="  ")
        print(f"mean logprob {fmean(logprobs):7.3f}  advantage {advantage:+.2f}  {text[:40]!r}")

    # 4. what a learner makes of the same ids
    if args.check is not None:
        print(
            f"largest difference to scoring them here: {largest_difference(args.check, prompt_ids, choices)}"
        )


def largest_difference(model: str, prompt_ids: list[int], choices: list[dict[str, Any]]) -> float:
    """Over all tokens of the group. 0 for the same file on the same machine."""
    from etude import Engine

    found = 0.0
    with Engine.load(model) as engine:
        for choice in choices:
            scores = engine.score([*prompt_ids, *choice["token_ids"]])[len(prompt_ids) :]
            for entry, score in zip(choice["logprobs"]["content"], scores, strict=True):
                assert score is not None
                found = max(found, abs(entry["logprob"] - score))
    return found


if __name__ == "__main__":
    main()
