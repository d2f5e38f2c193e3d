"""Pages of results: one self-contained HTML file of a folder, and a leaderboard of several."""
