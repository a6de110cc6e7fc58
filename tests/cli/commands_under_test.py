"""What the tests of the commands share."""

from __future__ import annotations

from dataclasses import dataclass

NACL = """data_NaCl
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 1
Na2 Na 0 0.5 0.5 1
Na3 Na 0.5 0 0.5 1
Na4 Na 0.5 0.5 0 1
Cl1 Cl 0.5 0 0 1
Cl2 Cl 0 0.5 0 1
Cl3 Cl 0 0 0.5 1
Cl4 Cl 0.5 0.5 0.5 1
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: exit code.
        out: standard output.
        err: standard error, in one line.
    """

    code: int
    out: str
    err: str
