-- wrk script: posts the bodies that a list file names, one after another.
--   wrk -s load.lua URL -- LIST CONTENT_TYPE [MARK] [PAUSE]
-- With MARK, every body gets it and a counter appended, so that no two bodies of a run are the same. A JPEG
-- decoder stops at the end of the image and does not see them.
-- With PAUSE, every client rests for about so many milliseconds before each request (exponentially distributed), so that
-- many clients together offer a rate, whatever the answers are.
-- Prints one line of JSON, after the word RESULT.

local DIGITS = 12
local bodies, heads = {}, {}
local mark, sent = nil, 0

function init(args)
   local kind = args[2]
   mark = args[3] ~= "" and args[3] or nil
   local pause = tonumber(args[4])
   if pause then
      math.randomseed(1)
      delay = function() return math.floor(-pause * math.log(1 - math.random()) + 0.5) end
   end
   local extra = mark and (#mark + DIGITS) or 0
   for path in io.lines(args[1]) do
      local file = assert(io.open(path, "rb"))
      local body = file:read("*a")
      file:close()
      bodies[#bodies + 1] = body
      heads[#heads + 1] = string.format(
         "POST %s HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n",
         wrk.path, wrk.host, wrk.port, kind, #body + extra)
   end
   for index, head in ipairs(heads) do
      bodies[index] = head .. bodies[index]
   end
end

function request()
   sent = sent + 1
   local body = bodies[(sent - 1) % #bodies + 1]
   if mark then
      return body .. mark .. string.format("%0" .. DIGITS .. "d", sent)
   end
   return body
end

function done(summary, latency, requests)
   local errors = summary.errors
   print(string.format(
      'RESULT {"requests": %d, "seconds": %.6f, "status": %d, "connect": %d, "read": %d, "write": %d, '
         .. '"timeout": %d, "p50": %.3f, "p90": %.3f, "p99": %.3f, "max": %.3f}',
      summary.requests, summary.duration / 1e6, errors.status, errors.connect, errors.read, errors.write,
      errors.timeout, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
      latency.max / 1e3))
end
