-- Wireshark's view of the ecd protocol (docs/PROTOCOL.md): an item for each frame, with fields, token ids, errors.
-- Copy it to the folder of personal Lua plugins (Help > About Wireshark > Folders), or:
--   tshark -X lua_script:ecd.lua -r capture.pcapng -O ecd
-- The daemons' default port is 7040. On others a connection is recognised by its HELLO, or said to be ecd with
-- "Decode As". What is encrypted needs the keys of TLS.

local ecd = Proto("ecd", "ecd edge-cloud protocol")

-- Fields stand in their order on the wire. u: integer, ids: packed token ids, any: whatever msgpack holds.
local MESSAGES = {
    [1] = { "HELLO", "major:u minor:u features:any auth:bytes limits:any fingerprint:any agent:text" },
    [2] = { "WELCOME", "major:u minor:u features:any limits:any fingerprint:any model:any agent:text" },
    [3] = {
        "OPEN",
        "prefix_hash:bytes prefix_len:u prompt:ids committed:ids sampling:any max_tokens:u stop:any pace:any "
            .. "logprobs:u fresh:u limit:u",
    },
    [4] = { "DRAFT", "seen:u base:u ids:ids confidence:bytes q:any alternates:alternates pace:any" },
    [5] = { "TOKENS", "base:u ids:ids accepted:u verified:u step_us:u finish:Finish logprobs:any cached:u" },
    [6] = { "COMMIT", "base:u ids:ids origin:Origin limit:u audit:u" },
    [7] = {
        "KV",
        "op:KvOp model:bytes first:u last:u chunk:u chunks:u encoding:text checksum:u payload:bytes",
    },
    [8] = { "CREDIT", "amount:u" },
    [9] = { "PING", "cookie:u" },
    [10] = { "PONG", "cookie:u load:any" },
    [11] = { "GOAWAY", "code:Code message:text" },
    [12] = { "RESET", "code:Code message:text" },
    [13] = { "ERROR", "code:Code message:text" },
    [14] = { "AUDIT", "base:u agreed:bytes forwards:u" },
}

local ENUMS = {
    Finish = { [0] = "NONE", "STOP", "LENGTH" },
    Origin = { [0] = "DRAFT_ACCEPTED", "TARGET", "EDGE_CONFIDENT", "EDGE_OFFLINE" },
    KvOp = { [0] = "DROP", "PAGES", "WANT" },
    Code = {
        [0] = "NONE", "PROTOCOL", "VERSION", "FINGERPRINT", "AUTH", "LIMIT", "BUSY", "BAD_REQUEST",
        "UNKNOWN_PREFIX", "CONTEXT_OVERFLOW", "ENGINE", "DRAINING", "TIMEOUT", "CANCELLED", "INTERNAL",
        "SLOW_READER", "UNAVAILABLE", "ENGINE_RESTARTED",
    },
}

local LENGTH_BYTES, MAX_FRAME_BYTES, HANDSHAKE_FRAME_BYTES = 4, 4194304, 65536
local MAX_DEPTH, MAX_TOKENS_SHOWN, MAX_BYTES_SHOWN = 32, 256, 32
-- Vocabularies up to this size have ids of 2 bytes, larger ones of 3.
local SMALL_VOCABULARY = 65536

local type_names = {}
for number, message in pairs(MESSAGES) do
    type_names[number] = message[1]
end

local f = {
    length = ProtoField.uint32("ecd.length", "Length"),
    type = ProtoField.uint32("ecd.type", "Type", base.DEC, type_names),
    stream = ProtoField.uint32("ecd.stream", "Stream"),
    token = ProtoField.uint32("ecd.token", "Token"),
    extra = ProtoField.string("ecd.extra", "Unknown field"),
}
local KINDS = {
    u = function(abbr, name) return ProtoField.uint64(abbr, name) end,
    bytes = function(abbr, name) return ProtoField.bytes(abbr, name) end,
}
for name in pairs(ENUMS) do
    KINDS[name] = function(abbr, label) return ProtoField.uint32(abbr, label, base.DEC, ENUMS[name]) end
end
local layouts = {}
for number, message in pairs(MESSAGES) do
    layouts[number] = {}
    for name, kind in message[2]:gmatch("([%w_]+):(%w+)") do
        table.insert(layouts[number], { name = name, kind = kind })
        -- One name has one kind in all messages; logprobs alone is asked for by number and told as a list.
        local key = name .. ":" .. kind
        if not f[key] then
            local abbr = "ecd." .. name
            if name == "logprobs" and kind == "any" then
                abbr = "ecd.told_logprobs"
            end
            f[key] = (KINDS[kind] or ProtoField.string)(abbr, name)
        end
        layouts[number][#layouts[number]].field = f[key]
    end
end
local fields = {}
for _, field in pairs(f) do
    table.insert(fields, field)
end
ecd.fields = fields

local e = {
    malformed = ProtoExpert.new(
        "ecd.malformed", "Not a frame of this protocol", expert.group.MALFORMED, expert.severity.ERROR
    ),
    ended = ProtoExpert.new("ecd.ended", "Ends a stream or the connection", expert.group.RESPONSE_CODE,
        expert.severity.WARN),
}
ecd.experts = { e.malformed, e.ended }

-- The bytes of a token id by TCP stream, as the fingerprints of HELLO and WELCOME say.
local widths = {}
local tcp_stream = Field.new("tcp.stream")

function ecd.init()
    widths = {}
end

-- msgpack

local value

local function sequence(tvb, at, count, depth, what)
    local node = { kind = what, items = {} }
    for index = 1, count do
        local item
        item, at = value(tvb, at, depth + 1)
        node.items[index] = item
    end
    return node, at
end

local function text_node(tvb, at, length)
    -- An empty range would be taken for all that is left.
    local text = length > 0 and tvb(at, length):string(ENC_UTF_8) or ""
    return { kind = "text", text = text }, at + length
end

local function bytes_node(tvb, at, length)
    return { kind = "bytes", at = at, length = length }, at + length
end

-- A value that starts at `at`, and where the next starts. Raises an error for what is none.
local function plain_value(tvb, at, depth)
    if depth > MAX_DEPTH then
        error("nested too deep", 0)
    end
    local tag = tvb(at, 1):uint()
    at = at + 1
    if tag <= 0x7f then return { kind = "u", number = UInt64.new(tag) }, at end
    if tag <= 0x8f then return sequence(tvb, at, 2 * (tag - 0x80), depth, "map") end
    if tag <= 0x9f then return sequence(tvb, at, tag - 0x90, depth, "array") end
    if tag <= 0xbf then return text_node(tvb, at, tag - 0xa0) end
    if tag == 0xc0 then return { kind = "nil" }, at end
    if tag == 0xc2 or tag == 0xc3 then return { kind = "word", text = tostring(tag == 0xc3) }, at end
    if tag >= 0xc4 and tag <= 0xc6 then
        local size = 2 ^ (tag - 0xc4)
        return bytes_node(tvb, at + size, tvb(at, size):uint())
    end
    if tag == 0xca then return { kind = "word", text = tostring(tvb(at, 4):float()) }, at + 4 end
    if tag == 0xcb then return { kind = "word", text = tostring(tvb(at, 8):float()) }, at + 8 end
    if tag >= 0xcc and tag <= 0xcf then
        local size = 2 ^ (tag - 0xcc)
        local number = size == 8 and tvb(at, 8):uint64() or UInt64.new(tvb(at, size):uint())
        return { kind = "u", number = number }, at + size
    end
    if tag >= 0xd0 and tag <= 0xd3 then
        local size = 2 ^ (tag - 0xd0)
        return { kind = "word", text = tostring(tvb(at, size):int64()) }, at + size
    end
    if tag >= 0xd9 and tag <= 0xdb then
        local size = 2 ^ (tag - 0xd9)
        return text_node(tvb, at + size, tvb(at, size):uint())
    end
    if tag == 0xdc or tag == 0xdd then
        local size = tag == 0xdc and 2 or 4
        return sequence(tvb, at + size, tvb(at, size):uint(), depth, "array")
    end
    if tag == 0xde or tag == 0xdf then
        local size = tag == 0xde and 2 or 4
        return sequence(tvb, at + size, 2 * tvb(at, size):uint(), depth, "map")
    end
    if tag >= 0xe0 then return { kind = "word", text = tostring(tag - 0x100) }, at end
    error(string.format("byte 0x%02x begins nothing here", tag), 0)
end

value = function(tvb, at, depth)
    local first = at
    local node
    node, at = plain_value(tvb, at, depth)
    node.range = tvb(first, at - first)
    return node, at
end

local function shown(tvb, node)
    if node.kind == "nil" then return "nil" end
    if node.kind == "u" then return tostring(node.number) end
    if node.kind == "word" then return node.text end
    if node.kind == "text" then return '"' .. node.text .. '"' end
    if node.kind == "bytes" then
        if node.length == 0 then return "<>" end
        local some = math.min(node.length, MAX_BYTES_SHOWN)
        local more = node.length > some and string.format("... %d bytes", node.length) or ""
        return "<" .. tostring(tvb(node.at, some):bytes()) .. more .. ">"
    end
    local parts = {}
    if node.kind == "map" then
        for index = 1, #node.items, 2 do
            table.insert(parts, shown(tvb, node.items[index]) .. ": " .. shown(tvb, node.items[index + 1]))
        end
        return "{" .. table.concat(parts, ", ") .. "}"
    end
    for _, item in ipairs(node.items) do
        table.insert(parts, shown(tvb, item))
    end
    return "[" .. table.concat(parts, ", ") .. "]"
end

-- Frames

local function tokens_of(tvb, node, width)
    local ids = {}
    for at = node.at, node.at + node.length - width, width do
        table.insert(ids, { range = tvb(at, width), id = tvb(at, width):uint() })
    end
    return ids
end

local function listed(ids)
    local numbers = {}
    for index = 1, math.min(#ids, MAX_TOKENS_SHOWN) do
        numbers[index] = tostring(ids[index].id)
    end
    if #ids > MAX_TOKENS_SHOWN then
        table.insert(numbers, string.format("... %d in all", #ids))
    end
    return table.concat(numbers, " ")
end

-- Without a handshake to tell, what divides the length.
local function width_for(stream, length)
    return widths[stream] or (length % 3 == 0 and 3 or 2)
end

local function learn_width(stream, fingerprint)
    if not fingerprint or fingerprint.kind ~= "map" then return end
    for index = 1, #fingerprint.items, 2 do
        local key, size = fingerprint.items[index], fingerprint.items[index + 1]
        if key.kind == "text" and key.text == "n_vocab" and size.kind == "u" then
            widths[stream] = size.number:tonumber() <= SMALL_VOCABULARY and 2 or 3
        end
    end
end

local function add_ids(tvb, tree, field, node, width)
    local ids = tokens_of(tvb, node, width)
    local item = tree:add(field, node.range, listed(ids))
    item:append_text(string.format(" (%d)", #ids))
    for index = 1, math.min(#ids, MAX_TOKENS_SHOWN) do
        item:add(f.token, ids[index].range, ids[index].id)
    end
    return #ids
end

local function alternates_shown(tvb, node, width_of)
    local parts = {}
    for _, alternate in ipairs(node.items or {}) do
        local position, ids = alternate.items[1], alternate.items[2]
        table.insert(parts, string.format("at %s: %s", tostring(position.number),
            listed(tokens_of(tvb, ids, width_of(ids.length)))))
    end
    return table.concat(parts, "; ")
end

-- Adds a field; what the summary says of it, if anything.
local function add_field(tvb, tree, slot, node, width_of)
    local kind, name = slot.kind, slot.name
    if node.kind == "nil" then return nil end
    if kind == "ids" and node.kind == "bytes" then
        local count = add_ids(tvb, tree, slot.field, node, width_of(node.length))
        return string.format("%s=%d", name, count)
    end
    if kind == "alternates" and node.kind == "array" then
        tree:add(slot.field, node.range, alternates_shown(tvb, node, width_of))
        return string.format("alternates=%d", #node.items)
    end
    if kind == "u" and node.kind == "u" then
        tree:add(slot.field, node.range, node.number)
        return name ~= "step_us" and string.format("%s=%s", name, tostring(node.number)) or nil
    end
    if ENUMS[kind] and node.kind == "u" then
        local number = node.number:tonumber()
        tree:add(slot.field, node.range, number)
        return number ~= 0 and (ENUMS[kind][number] or tostring(number)) or nil
    end
    if kind == "bytes" and node.kind == "bytes" then
        if node.length > 0 then tree:add(slot.field, tvb(node.at, node.length)) end
        return nil
    end
    if kind == "text" and node.kind == "text" then
        tree:add(slot.field, node.range, node.text)
        return '"' .. node.text .. '"'
    end
    tree:add(slot.field, node.range, shown(tvb, node))
    return nil
end

local function dissect_body(tvb, tree, stream_of_tcp)
    local node, last = value(tvb, LENGTH_BYTES, 0)
    if node.kind ~= "array" or last ~= tvb:len() then
        error("the body is not one array", 0)
    end
    local kind, stream = node.items[1], node.items[2]
    if not (kind and stream and kind.kind == "u" and stream.kind == "u") then
        error("the array does not begin with type and stream", 0)
    end
    local number = kind.number:tonumber()
    local layout = layouts[number]
    tree:add(f.type, kind.range, number)
    tree:add(f.stream, stream.range, stream.number:tonumber())
    local name = type_names[number] or string.format("type %d", number)
    local number_of_stream = stream.number:tonumber()
    local said = { number_of_stream == 0 and name or string.format("%s %d", name, number_of_stream) }
    for index, slot in ipairs(layout or {}) do
        if slot.name == "fingerprint" then learn_width(stream_of_tcp, node.items[index + 2]) end
    end
    local function width_of(length) return width_for(stream_of_tcp, length) end
    for index = 3, #node.items do
        local slot = layout and layout[index - 2]
        if slot then
            table.insert(said, add_field(tvb, tree, slot, node.items[index], width_of))
        else
            tree:add(f.extra, node.items[index].range, shown(tvb, node.items[index]))
        end
    end
    local summary = table.concat(said, " ")
    if name == "GOAWAY" or name == "RESET" or name == "ERROR" then
        tree:add_proto_expert_info(e.ended, summary)
    end
    return summary
end

local function frame_length(tvb, pinfo, offset)
    local length = tvb(offset, LENGTH_BYTES):uint()
    -- What cannot be a frame is shown as far as it is there.
    if length == 0 or length > MAX_FRAME_BYTES then return tvb:len() - offset end
    return LENGTH_BYTES + length
end

local function dissect_frame(tvb, pinfo, root)
    local tree = root:add(ecd, tvb())
    local length = tvb(0, LENGTH_BYTES):uint()
    tree:add(f.length, tvb(0, LENGTH_BYTES))
    local stream = tcp_stream()
    local well, said = false, string.format("length %d is not in 1..%d", length, MAX_FRAME_BYTES)
    if length > 0 and length <= MAX_FRAME_BYTES then
        well, said = pcall(dissect_body, tvb, tree, stream and stream.value or 0)
    end
    if not well then
        tree:add_proto_expert_info(e.malformed, tostring(said))
        said = "malformed"
    end
    tree:append_text(", " .. said)
    pinfo.cols.info:append(said .. "  ")
    return tvb:len()
end

function ecd.dissector(tvb, pinfo, tree)
    pinfo.cols.protocol = "ecd"
    pinfo.cols.info = ""
    dissect_tcp_pdus(tvb, tree, LENGTH_BYTES, frame_length, dissect_frame)
    return tvb:len()
end

-- A connection begins with HELLO: an array, type 1, stream 0, behind a length for a handshake.
local function is_hello(tvb)
    if tvb:len() < LENGTH_BYTES + 3 then return false end
    local length, tag = tvb(0, LENGTH_BYTES):uint(), tvb(LENGTH_BYTES, 1):uint()
    if length > HANDSHAKE_FRAME_BYTES or tag < 0x97 or tag > 0x9f then return false end
    return tvb(LENGTH_BYTES + 1, 2):uint() == 0x0100
end

ecd:register_heuristic("tcp", function(tvb, pinfo, tree)
    if not is_hello(tvb) then return false end
    pinfo.conversation = ecd
    ecd.dissector(tvb, pinfo, tree)
    return true
end)
DissectorTable.get("tcp.port"):add(7040, ecd)
DissectorTable.get("tls.port"):add(7040, ecd)
