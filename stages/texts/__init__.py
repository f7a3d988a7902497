"""What a prompt is: where prompts come from, how they are cleaned and named, which are held out."""
