//! The part of the firmware that gives devices their addresses and interrupts.
