"""
---
title: Engines
summary: How a rule is run - per tensor, over lists, or as one kernel.
---

# Engines

A rule page says how one parameter moves. An engine decides what "a tensor" is when the page is read.
No engine knows any rule, and no rule knows its engine.
"""
