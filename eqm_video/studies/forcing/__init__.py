"""The forcing study: EqM, EqF and flow matching compared, with error bars."""
