"""A student that goes where its teacher's descent rests, in a few evaluations."""
