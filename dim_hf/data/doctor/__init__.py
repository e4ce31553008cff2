"""The doctor: looks at every file of a data set and says what is wrong with it, and how to mend it."""
