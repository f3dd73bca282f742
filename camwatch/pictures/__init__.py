"""All that draws pixels: colours, text, outlines, sheets, the film strip, and their coding."""
