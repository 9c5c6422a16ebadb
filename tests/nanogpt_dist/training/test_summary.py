"""What a run says before its first step."""

from nanogpt_dist.training.summary import counted


def test_one_of_a_thing_is_no_plural() -> None:
    assert (counted(1, "rank"), counted(2, "rank")) == ("1 rank", "2 ranks")
    assert counted(1000, "micro-batch", "es") == "1,000 micro-batches"
