"""Decides about turns and answers: rules, classifier, guard model, personal data, thinking, the escalation desk."""
