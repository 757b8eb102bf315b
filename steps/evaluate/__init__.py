"""The evaluate step: the tuned model beside the base model."""
