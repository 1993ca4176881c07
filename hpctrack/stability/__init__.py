"""How alike trainings are: loss landscapes, connections between runs, similarity of what they compute, churn."""
