"""The records of torch's optimizers."""

from smdtrack.theory import denominators, rules_adam, rules_matrix, rules_sgd, rules_trust
from smdtrack.theory.calibration import CALIBRATED
from smdtrack.theory.dynamics import ANY_GRADIENT, WHITE
from smdtrack.theory.optimizer_info import GRADIENT, SCALE_FREE, SQUARED_GRADIENT, OptimizerInfo, always, unless
from smdtrack.theory.rules_adam import FORMULA_AVERAGE, KOSSON, SLOW_MOMENT
from smdtrack.theory.rules_sgd import SLOW_SCHEDULE, WAN

ADAM_POWERS = {"exp_avg": GRADIENT, "exp_avg_sq": SQUARED_GRADIENT, "max_exp_avg_sq": SQUARED_GRADIENT}
NORMALISED = (WHITE, SLOW_MOMENT)

TORCH = (
    OptimizerInfo(
        key="torch.SGD",
        title="SGD",
        rule=rules_sgd.sgd,
        formula="2 lr wd (1-tau)/(1+a)",
        source=WAN,
        assumptions=(ANY_GRADIENT, SLOW_SCHEDULE),
        is_coupled=always,
        momentum_entry="momentum_buffer",
        state_powers={"momentum_buffer": GRADIENT},
    ),
    OptimizerInfo(
        key="torch.Adam",
        title="Adam",
        rule=rules_adam.torch_adam,
        formula=FORMULA_AVERAGE,
        source=KOSSON,
        assumptions=NORMALISED,
        is_coupled=unless("decoupled_weight_decay"),
        denominators=denominators.adam,
        own_share=rules_adam.average_share,
        state_powers=ADAM_POWERS,
    ),
    OptimizerInfo(
        key="torch.AdamW",
        title="AdamW",
        rule=rules_adam.adam,
        formula=FORMULA_AVERAGE,
        source=KOSSON,
        assumptions=NORMALISED,
        state_powers=ADAM_POWERS,
    ),
    OptimizerInfo(
        key="torch.NAdam",
        title="NAdam",
        rule=rules_adam.nadam,
        formula="2 lr wd / R, R at the present momentum",
        assumptions=NORMALISED,
        is_coupled=unless("decoupled_weight_decay"),
        denominators=denominators.adam,
        own_share=rules_adam.nadam_share,
        state_powers=ADAM_POWERS,
        depends_on_step=True,
    ),
    OptimizerInfo(
        key="torch.RAdam",
        title="RAdam",
        rule=rules_adam.adam,
        formula=FORMULA_AVERAGE,
        source=KOSSON,
        assumptions=NORMALISED,
        is_coupled=unless("decoupled_weight_decay"),
        denominators=denominators.radam,
        own_share=rules_adam.average_share,
        state_powers=ADAM_POWERS,
    ),
    OptimizerInfo(
        key="torch.Adamax",
        title="Adamax",
        rule=rules_adam.adam,
        assumptions=NORMALISED,
        is_coupled=always,
        denominators=denominators.adamax,
        state_powers={"exp_avg": GRADIENT, "exp_inf": GRADIENT},
    ),
    OptimizerInfo(
        key="torch.Adagrad",
        title="Adagrad",
        rule=rules_adam.adagrad,
        assumptions=NORMALISED,
        is_coupled=always,
        denominators=denominators.adagrad,
        state_powers={"sum": SQUARED_GRADIENT},
    ),
    OptimizerInfo(
        key="torch.RMSprop",
        title="RMSprop",
        rule=rules_adam.rmsprop,
        formula="2 lr wd (1-a)/(1+a)",
        assumptions=NORMALISED,
        is_coupled=always,
        denominators=denominators.rmsprop,
        own_share=rules_adam.rmsprop_share,
        state_powers={"square_avg": SQUARED_GRADIENT, "grad_avg": GRADIENT, "momentum_buffer": SCALE_FREE},
    ),
    OptimizerInfo(
        key="torch.Adadelta",
        title="Adadelta",
        rule=rules_matrix.adadelta,
        state_powers=None,
    ),
    OptimizerInfo(
        key="torch.Rprop",
        title="Rprop",
        rule=rules_matrix.rprop,
        state_powers=None,
    ),
    OptimizerInfo(
        key="torch.Adafactor",
        title="Adafactor",
        rule=rules_trust.torch_adafactor,
        kind="approximate",
        formula="Delta = min(lr, 1/sqrt(step)) / (1 - lr wd)",
        source="derived here (the step is a share of the weight's size)",
        assumptions=rules_trust.ADAFACTOR,
        state_powers={"variance": SQUARED_GRADIENT, "row_var": SQUARED_GRADIENT, "col_var": SQUARED_GRADIENT},
        depends_on_step=True,
    ),
    OptimizerInfo(
        key="torch.Muon",
        title="Muon",
        rule=rules_matrix.muon,
        kind="calibrated",
        formula="2 lr wd / R, R calibrated for the shape",
        source=CALIBRATED,
        assumptions=(WHITE, rules_matrix.STAND_IN),
        state_powers={"momentum_buffer": GRADIENT},
        depends_on_shape=True,
    ),
)
