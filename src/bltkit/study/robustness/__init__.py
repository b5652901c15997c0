"""The study `robustness`: curves of models' scores over the intensity of noise."""
