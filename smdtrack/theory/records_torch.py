"""The records of torch's optimizers."""

from smdtrack.theory import denominators, rules_adam, rules_matrix, rules_sgd
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
        state_powers=ADAM_POWERS,
    ),
    OptimizerInfo(
        key="torch.Adamax",
        title="Adamax",
        rule=rules_adam.average_without_own_share,
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
        state_powers={"square_avg": SQUARED_GRADIENT, "grad_avg": GRADIENT, "momentum_buffer": SCALE_FREE},
    ),
    OptimizerInfo(
        key="torch.Adadelta",
        title="Adadelta",
        rule=rules_matrix.adadelta,
        state_powers=None,
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
