"""Copies of entries on other nodes, so that a deploy loses nothing and a crash next to nothing.

The second in a key's ranking holds a copy of what its owner holds: if the owner goes, that node is the owner by
definition.

- Each change has a version (`versions`), and the greater version wins, wherever it comes from.
- The owner answers first, and sends the key's present state afterwards, in order (`outbox`).
- A joining node is filled by all owners, then takes over from each: an owner sends it what has changed since, and from
  then on executes nothing for these slots. Only then does it serve (`hand_over`).
- A leaving node announces it, sees to it that the next owners are filled, hands over, and then leaves the view.
- A node that is asked for a key of another owner forwards the request.
- What a node neither owns nor backs up is dropped once all others have what they have to hold.

Simpler rules fail in the simulation.
"""
