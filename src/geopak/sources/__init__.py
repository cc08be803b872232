"""Where photos come from: sources, what they are asked, and the ledger of what they answered."""
