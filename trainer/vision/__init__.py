"""Images in conversations: read, made into pixels, given their places among the tokens."""
