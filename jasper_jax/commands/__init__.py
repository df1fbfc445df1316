"""What each command does, a file for each or for a few that share their steps; ``cli`` declares them."""
