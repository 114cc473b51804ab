"""A suite becomes cells; cells become answers, ratings and a board. Every stage can be stopped and resumed."""
