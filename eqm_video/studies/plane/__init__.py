"""The study `plane`: flow matching beside Equilibrium Matching in two dimensions."""
