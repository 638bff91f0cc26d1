"""Lua scripts for Redis and Valkey. Each runs atomically."""

from typing import Final

from ..core.limits.algorithms import TOLERANCE

# Takes back at most what is counted: a counter below zero would be a credit.
REFUND_FIXED_WINDOW: Final = """
local refunded = math.min(tonumber(redis.call('get', KEYS[1]) or 0), tonumber(ARGV[1]))
if refunded > 0 then redis.call('decrby', KEYS[1], refunded) end
"""

# Decides as the sliding window of `core.limits.algorithms` does, to the last bit and with the same state; its comments
# say why. Times are those of the engine's clock since the second in which the state was made, so that a double resolves
# microseconds. Counts a hit of the cost (0 counts nothing), and replies with whether it was counted, the time, and the
# state before it, if there was one.
SLIDING_WINDOW: Final = """
local limit, period, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('time')
local kept = redis.call('hmget', KEYS[1], 'zero', 'until', 'base', 'even', 'edge', 'previous', 'current')
local zero = tonumber(kept[1] or time[1])
local now = tonumber(time[1]) - zero + tonumber(time[2]) / 1000000
local answer = {0, string.format('%.17g', now)}
local base, even, edge, previous, current = now, now, now + period, 0, 0
if kept[1] and now < tonumber(kept[2]) - TOLERANCE then
    for i = 2, 7 do answer[i + 1] = kept[i] end
    base, even, edge = tonumber(kept[3]), tonumber(kept[4]), tonumber(kept[5])
    previous, current = tonumber(kept[6]), tonumber(kept[7])
    if now >= edge - TOLERANCE then
        base = base + current * period / limit
        even, edge, previous, current = base, tonumber(kept[2]), current, 0
    end
end
local share = 0
if previous > 0 then
    local line = (even + period - now - TOLERANCE) * limit / period
    if TOLERANCE * limit / period > 0.5 then line = line + (TOLERANCE * limit / period - 0.5) end
    share = math.max(math.min(previous, math.ceil(line) - 1), 0)
end
if cost == 0 or cost > limit - current - share then return answer end
base = math.max(base, now - current * period / limit)
local values = {zero, now + period, base, even, edge, previous, current + cost}
for i = 1, 7 do values[i] = string.format('%.17g', values[i]) end
redis.call('hset', KEYS[1], 'zero', values[1], 'until', values[2], 'base', values[3], 'even', values[4],
    'edge', values[5], 'previous', values[6], 'current', values[7])
redis.call('pexpire', KEYS[1], math.ceil(period * 1000) + 1)
answer[1] = 1
return answer
""".replace("TOLERANCE", repr(TOLERANCE))

# Takes back a hit that was counted `ago` seconds before, as `core.limits.algorithms` does.
REFUND_SLIDING_WINDOW: Final = """
local cost, limit, period, ago = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('time')
local kept = redis.call('hmget', KEYS[1], 'zero', 'base', 'edge', 'previous', 'current')
if not kept[1] or ago >= period then return end
local at = tonumber(time[1]) - tonumber(kept[1]) + tonumber(time[2]) / 1000000 - ago
local base, edge, previous, current = tonumber(kept[2]), tonumber(kept[3]), tonumber(kept[4]), tonumber(kept[5])
if previous > 0 and (current == 0 or at <= edge - period + TOLERANCE) then
    previous = math.max(previous - cost, 0)
else
    local refunded = math.min(cost, current)
    base, current = base + math.min(refunded * period / limit, ago), current - refunded
end
redis.call('hset', KEYS[1], 'base', string.format('%.17g', base), 'previous', string.format('%.17g', previous),
    'current', string.format('%.17g', current))
""".replace("TOLERANCE", repr(TOLERANCE))
