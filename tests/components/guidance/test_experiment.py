from components.common.config import load_params
from components.guidance.experiment import of_several


def test_one_adapter_for_several_has_the_sum_of_their_losses():
    """A mean over n requests' prompts with weights a nth as large is a nth of their losses added up."""
    alone = load_params().guidance
    found = of_several(alone, 4)

    assert (found.steps, found.rank) == (4 * alone.steps, 4 * alone.rank)
    assert (4 * found.uncond_weight, 4 * found.retain_weight) == (alone.uncond_weight, alone.retain_weight)
    assert of_several(alone, 1) == alone
