"""Source `telescope`: protons that stop in a stack of pixel planes, the digital tracking calorimeter of proton CT."""
