"""A loss of one's own: SAPO's soft clipping (arXiv 2511.20347), a gate that closes smoothly as the ratio leaves 1."""

from prefloop.engine.outputs import LossOut


def soft_clip(out, forest, totals, *, steepness=1.0):
    ratio = (out.need("logprobs") - forest.field("old_logprobs")).exp()
    gate = (steepness * (ratio - 1)).sigmoid() * 4 / steepness
    loss = -(gate * forest.field("advantages") * forest.field("weight")).sum() / totals.tokens
    return LossOut(loss, {"policy/loss": loss.detach()})
