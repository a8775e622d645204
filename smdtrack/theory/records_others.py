"""The records of apex's and bitsandbytes' optimizers: their code was read, but they need a GPU and were not run."""

from dataclasses import replace

from smdtrack.theory import denominators, rules_adam, rules_other_packages, rules_sgd, rules_trust
from smdtrack.theory.dynamics import ANY_GRADIENT
from smdtrack.theory.optimizer_info import GRADIENT, OptimizerInfo, always, unless_attribute
from smdtrack.theory.records_torch import ADAM_POWERS, NORMALISED
from smdtrack.theory.rules_adam import FORMULA_AVERAGE, KOSSON
from smdtrack.theory.rules_sgd import SLOW_SCHEDULE, WAN

APEX = (
    OptimizerInfo(
        key="apex.FusedSGD",
        title="SGD",
        rule=rules_sgd.sgd,
        formula="2 lr wd (1-tau)/(1+a)",
        source=WAN,
        assumptions=(ANY_GRADIENT, SLOW_SCHEDULE),
        is_coupled=always,
        state_powers={"momentum_buffer": GRADIENT},
        verified=False,
    ),
    OptimizerInfo(
        key="apex.FusedAdam",
        title="Adam",
        rule=rules_adam.torch_adam,
        formula=FORMULA_AVERAGE,
        source=KOSSON,
        assumptions=NORMALISED,
        is_coupled=unless_attribute("adam_w_mode", 1),
        denominators=denominators.adam,
        own_share=rules_adam.average_share,
        state_powers=ADAM_POWERS,
        verified=False,
    ),
    OptimizerInfo(
        key="apex.FusedLAMB",
        title="LAMB",
        rule=rules_trust.lamb,
        formula="Delta = 2 asin(lr/2)",
        source=rules_trust.CHORD,
        assumptions=(rules_trust.STEADY_NORM,),
        state_powers=ADAM_POWERS,
        verified=False,
    ),
    OptimizerInfo(
        key="apex.FusedNovoGrad",
        title="NovoGrad",
        rule=rules_other_packages.apex_novograd,
        formula="2 gamma / R",
        # Its second moments are in the parameter group, where they are not rescaled.
        state_powers=None,
        verified=False,
    ),
)


def _with_8_bit_twin(info: OptimizerInfo) -> tuple[OptimizerInfo, OptimizerInfo]:
    """Returns the record, and the same for the class that keeps its state in 8 bits."""
    return info, replace(info, key=f"{info.key}8bit")


BITSANDBYTES = (
    *_with_8_bit_twin(
        OptimizerInfo(
            key="bitsandbytes.SGD",
            title="SGD",
            rule=rules_other_packages.bitsandbytes_sgd,
            formula="2 lr wd (1-tau)/(1+a)",
            source=WAN,
            assumptions=(ANY_GRADIENT, SLOW_SCHEDULE),
            is_coupled=always,
            state_powers=None,
            verified=False,
        )
    ),
    # Adam and AdamW call the same kernel, which decouples weight decay in both (bitsandbytes' issues 10 and 2010).
    *_with_8_bit_twin(
        OptimizerInfo(
            key="bitsandbytes.Adam",
            title="AdamW",
            rule=rules_adam.adam,
            formula=FORMULA_AVERAGE,
            source=KOSSON,
            assumptions=NORMALISED,
            state_powers=None,
            verified=False,
        )
    ),
    *_with_8_bit_twin(
        OptimizerInfo(
            key="bitsandbytes.AdamW",
            title="AdamW",
            rule=rules_adam.adam,
            formula=FORMULA_AVERAGE,
            source=KOSSON,
            assumptions=NORMALISED,
            state_powers=None,
            verified=False,
        )
    ),
    *_with_8_bit_twin(
        OptimizerInfo(
            key="bitsandbytes.Lion",
            title="Lion",
            rule=rules_adam.lion,
            assumptions=rules_adam.SIGNS,
            state_powers=None,
            verified=False,
        )
    ),
    *_with_8_bit_twin(
        OptimizerInfo(
            key="bitsandbytes.AdEMAMix",
            title="AdEMAMix",
            rule=rules_adam.ademamix,
            assumptions=NORMALISED,
            state_powers=None,
            verified=False,
        )
    ),
)
