"""What a detector withstands: adversarial perturbations of pixels, attacks on the gate, common corruptions."""
