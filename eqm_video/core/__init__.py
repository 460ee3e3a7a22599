"""The mathematics of Equilibrium Matching: objective, decays and draws of gamma, energies, guidance, composition."""
