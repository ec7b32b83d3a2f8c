-- Pandoc reader of the parts of a notebook (report/cells.py writes them as JSON): each Markdown part is a document of
-- its own, as JupyterLab reads it, and becomes a Div with its cell and section.

local GFM = "commonmark+pipe_tables+strikeout+task_lists+autolink_bare_uris+footnotes+alerts"
local KINDS = { fig = true, eq = true, tbl = true, sec = true, lst = true }
local VOID = { track = true, area = true, base = true, br = true, hr = true, img = true, wbr = true, input = true, source = true, col = true, link = true, meta = true }
local SHOWN = {}
for tag in ([[a abbr acronym address area article aside b base bdi bdo big blockquote body br caption center cite code
  col colgroup data datalist dd del details dfn dialog dir div dl dt em fieldset figcaption figure font footer h1 h2 h3
  h4 h5 h6 head header hgroup hr html i img ins kbd label legend li link main map mark math menu meta meter nav nobr
  noscript ol optgroup option output p picture pre progress q rb rp rt ruby s samp search section small source span
  strike strong style sub summary sup svg table tbody td template tfoot th thead time title tr track tt u ul var wbr]]):gmatch("%S+") do SHOWN[tag] = true end
local NEVER = {}
for tag in ([[script iframe video audio canvas object embed form input select button textarea]]):gmatch("%S+") do
  NEVER[tag] = true
end
local job, part, anchors = nil, nil, {}

local function complain(...)
  if job.asked then return end
  pandoc.log.warn(string.format("%d\t%s", part and part.cell or 0, string.format(...)))
end

-- {#fig:x .class key=value} at place i of a list of inlines: its attributes, the place behind it, the rest of its word
local function attributes(inlines, i)
  if not (inlines[i] and inlines[i].t == "Str" and inlines[i].text:match("^{[#.]%a")) then return nil end
  local text = ""
  for j = i, #inlines do
    local one = inlines[j]
    if one.t ~= "Str" and one.t ~= "Space" and one.t ~= "SoftBreak" then return nil end
    text = text .. (one.text or " ")
    local inside, rest = text:match("^{([^{}]*)}(.*)$")
    if inside then
      local attr = { id = inside:match("#([%w:_-]+)") or "", classes = {}, values = {} }
      for class in inside:gmatch("%.([%a][%w-]*)") do table.insert(attr.classes, class) end
      for key, value in inside:gmatch("(%a+)=([%w%%.]+)") do attr.values[key] = value end
      return pandoc.Attr(attr.id, attr.classes, attr.values), j + 1, rest
    end
  end
end

-- ---------------------------------------------------------------- formulas

local function restored(text)
  return (text:gsub("@@(%d+)@@", function(n) return part.math and part.math[n + 1] and part.math[n + 1].source or nil end))
end

local function anchor(label)
  return "formula:" .. label:gsub("[^%w]", function(c) return string.format("-%02x", c:byte()) end)
end

-- what MathJax writes for \ref and \eqref: the tag of the formula with that label
local function number_of(label, round, source)
  local tag = job.labels[label] or ""
  if tag == "" then complain("%s: no formula has this label and a \\tag", source:sub(1, 80)) end
  tag = tag == "" and "???" or tag
  return round and "(" .. tag .. ")" or tag, tag ~= "???"
end

local function formula(n)
  local math = part.math and part.math[n + 1]
  if not math then return pandoc.Str("@@" .. n .. "@@") end
  if math.plain then return pandoc.Str(math.source) end
  if math.label then
    local text, known = number_of(math.label, math.round, math.source)
    return known and pandoc.Link(text, "#" .. anchor(math.label)) or pandoc.Str(text)
  end
  if not math.text then return pandoc.Code(math.source) end
  if math.text == "" then return pandoc.Str("") end
  local text = math.text:gsub("\\(e?q?)ref%s*{%s*(.-)%s*}", function(round, label)
    return "\\text{" .. number_of(label, round == "eq", "\\" .. round .. "ref{" .. label .. "}") .. "}"
  end)
  local result = pandoc.Math(math.display and "DisplayMath" or "InlineMath", text)
  if not pandoc.write(pandoc.Pandoc { pandoc.Plain { result } }, "typst"):match("^%$.*%$%s*$") then  -- pandoc has warned
    complain("pandoc cannot convert the formula %s", math.source:gsub("%s+", " "):sub(1, 80))
    return pandoc.Code(math.source)
  end
  local found = pandoc.Inlines { math.tag ~= "" and pandoc.Span(result, { class = "tagged", tag = math.tag }) or result }
  for label, tag in pairs(math.labels) do
    if tag ~= "" and not anchors[label] then
      anchors[label] = true
      found:insert(1, pandoc.Span({}, { id = anchor(label) }))
    end
  end
  return found
end

local function str(element)
  if not element.text:find("@@%d+@@") then return nil end
  local result, at = pandoc.Inlines {}, 1
  for first, n, last in element.text:gmatch("()@@(%d+)@@()") do
    if first > at then result:insert(pandoc.Str(element.text:sub(at, first - 1))) end
    local made = formula(tonumber(n))
    if pandoc.utils.type(made) == "Inlines" then result:extend(made) else result:insert(made) end
    at = last
  end
  if at <= #element.text then result:insert(pandoc.Str(element.text:sub(at))) end
  return result
end

-- ---------------------------------------------------------------- references

local function known(key) return KINDS[key:match("^(%a+):")] or job.keys[key] end

local function cite(keys, mode)
  return pandoc.Cite({}, keys:map(function(key) return pandoc.Citation(key, mode) end))
end

-- [@a; @b], and @a for a label or a source: only of what there is, for in Jupyter @ is a letter like others
local function references(inlines)
  local result, i = pandoc.Inlines {}, 1
  while i <= #inlines do
    local text = inlines[i].t == "Str" and inlines[i].text or ""
    local before, open = text:match("^(.-)(%[@.*)$")
    local taken = false
    if open then
      local whole, j = open, i
      while not whole:find("]", 1, true) and inlines[j + 1] and (inlines[j + 1].t == "Str" or inlines[j + 1].t:match("Space$") or inlines[j + 1].t == "SoftBreak") do
        j = j + 1
        whole = whole .. (inlines[j].text or " ")
      end
      local inside, after = whole:match("^%[(@[%w_:;@%s./-]+)%](.*)$")
      if inside then
        local keys = pandoc.List {}
        for key in inside:gmatch("@([%w_:./-]+)") do keys:insert(key) end
        for _, key in ipairs(keys) do
          if not known(key) and job.strict then complain("unknown citation @%s: add it to references.bib", key) end
        end
        if not keys:find_if(function(key) return not known(key) end) then
          if before ~= "" then result:insert(pandoc.Str(before)) end
          result:insert(cite(keys, "NormalCitation"))
          if after ~= "" then result:insert(pandoc.Str(after)) end
          i, taken = j, true
        end
      end
    end
    if not taken and text:find("@", 1, true) and not text:find("@@", 1, true) then
      local before, key, after = text:match("^(.-)@(%a[%w_:-]*)(.*)$")
      while key and not known(key) do
        local more, next_key, rest = after:match("^(.-)@(%a[%w_:-]*)(.*)$")
        before, key, after = before .. "@" .. key .. (more or ""), next_key, rest
      end
      if key and not before:match("[%w]$") then
        if before ~= "" then result:insert(pandoc.Str(before)) end
        result:insert(cite(pandoc.List { key }, "AuthorInText"))
        if after ~= "" then result:insert(pandoc.Str(after)) end
        taken = true
      end
    end
    if not taken then result:insert(inlines[i]) end
    i = i + 1
  end
  return result
end

local function inlines_of(inlines)
  for i = #inlines - 1, 1, -1 do
    if inlines[i].t == "Image" then
      local attr, behind, rest = attributes(inlines, i + 1)
      if attr then
        inlines[i].attr = attr
        for _ = i + 1, behind - 1 do inlines:remove(i + 1) end
        if rest ~= "" then inlines:insert(i + 1, pandoc.Str(rest)) end
      end
    end
  end
  return references(inlines)
end

-- ---------------------------------------------------------------- figures, tables, listings, headings

local function blank(inline)
  return inline.t == "Space" or inline.t == "SoftBreak" or inline.t == "LineBreak" or (inline.t == "Str" and inline.text == "")
end

local function picture_of(inline)
  if inline.t == "Image" then return inline end
  if inline.t == "Link" and #inline.content == 1 and inline.content[1].t == "Image" then return inline.content[1] end
end

local function caption_of(image)
  local text, name = pandoc.utils.stringify(image.caption), image.src:match("[^/:]*$")
  if text == name or text == "image.png" then return pandoc.Inlines {} end  -- Jupyter's own for a pasted picture
  return image.caption
end

local function figure(inline)
  local image = picture_of(inline)
  local caption, id = caption_of(image), image.identifier
  if #caption == 0 and job.strict then
    complain("an image has no caption: save it and link it as ![caption](../figures/name.png){#fig:name}")
  end
  image.identifier, image.caption = "", {}
  if not job.strict then image.title = "" end  -- the report's alternative text
  if #caption == 0 and id == "" then return pandoc.Para { inline } end
  return pandoc.Figure(pandoc.Plain { inline }, { long = { pandoc.Plain(caption) } }, { id = id })
end

-- a picture alone on its line is a figure, one within a sentence keeps its caption behind it
local function paragraph(block)
  local result, text = pandoc.Blocks {}, pandoc.Inlines {}
  local make = block.t == "Plain" and pandoc.Plain or pandoc.Para
  local function flush()
    while #text > 0 and blank(text[#text]) do text:remove() end
    while #text > 0 and blank(text[1]) do text:remove(1) end
    if #text > 0 then result:insert(make(text)) end
    text = pandoc.Inlines {}
  end
  local only = not block.content:find_if(function(one) return not (blank(one) or picture_of(one)) end)
  local i, found = 1, false
  for i = 1, #block.content do
    local one, image = block.content[i], picture_of(block.content[i])
    local function ends(other) return not other or other.t == "SoftBreak" or other.t == "LineBreak" end
    local previous, following = block.content[i - 1], block.content[i + 1]
    if not image then
      text:insert(one)
    elseif only or image.identifier ~= "" or (ends(previous) and ends(following)) then
      flush()
      result:insert(figure(one))
      found = true
    else
      local caption = caption_of(image)
      image.caption = {}
      text:insert(one)
      if #caption > 0 then
        text:insert(pandoc.Space())
        text:insert(pandoc.Span({ pandoc.Str("("), pandoc.Span(caption), pandoc.Str(")") }, { class = "caption" }))
      end
      found = true
    end
  end
  if not found then return nil end
  flush()
  return result
end

local function header(block)
  local attr, behind, rest
  for i = 1, #block.content do
    attr, behind, rest = attributes(block.content, i)
    if attr and behind > #block.content and rest == "" then
      block.attr = attr
      for _ = i, behind - 1 do block.content:remove(i) end
      if blank(block.content[#block.content] or pandoc.Space()) and #block.content > 0 then block.content:remove() end
      break
    end
  end
  return block
end

local function listing(block)
  local number = (block.classes[1] or ""):match("^listing%-(%d+)$")
  local found = number and part.listings and part.listings[number + 1]
  if found then
    block.attr = pandoc.Attr(found.id, { found.class }, { caption = found.caption })
  elseif block.classes[1] == "mermaid" then
    complain("a mermaid diagram is drawn by a browser alone, and is shown as its source: save it as an image")
  elseif block.classes[1] and block.classes[1]:match("^{") then
    block.classes = { block.classes[1]:match("[%w-]+") }
  end
  block.text = restored(block.text)
  return block
end

local function dashes_of(blocks)
  local count = 0
  blocks:walk { Table = function() count = count + 1 end }
  if not part.dashes or #part.dashes ~= count then return blocks end
  count = 0
  return blocks:walk { Table = function(block)
    count = count + 1
    block.attributes.dashes = part.dashes[count]
    return block
  end }
end

-- ": caption {#tbl:x}" below a table
local function captions(blocks)
  for i = #blocks, 2, -1 do
    local text = blocks[i].t == "Para" and blocks[i].content
    if blocks[i - 1].t == "Table" and text and #text > 2 and text[1].t == "Str" and text[1].text == ":" then
      local attr
      for j = 3, #text do
        attr = attributes(text, j)
        if attr then
          while text[j] do text:remove(j) end
          if blank(text[#text]) then text:remove() end
          break
        end
      end
      text:remove(1)
      text:remove(1)
      blocks[i - 1].caption = { long = { pandoc.Plain(text) } }
      if attr then blocks[i - 1].identifier = attr.identifier end
      blocks:remove(i)
    end
  end
  return blocks
end

-- ---------------------------------------------------------------- HTML

local function tag_of(text) return (text:match("^</?([%a][%w-]*)") or ""):lower() end

-- Does the text have to be read as HTML again? What is no element of HTML, or is never closed, is text
local function html_of(blocks)
  local raw, closed = false, {}
  local function close(element)
    if element.format == "html" then
      for tag in element.text:gmatch("</([%a][%w-]*)") do closed[tag:lower()] = true end
    end
  end
  blocks:walk { RawInline = close, RawBlock = close }
  local svg = part.text:find("<svg", 1, true) or part.text:find("<math", 1, true)  -- whose elements have other names
  local function is_text(text)
    local tag = tag_of(text)
    if svg and tag ~= "" then return false end
    if text:match("^<[!?]") then return false end
    if not SHOWN[tag] and not NEVER[tag] then return true end
    return not VOID[tag] and not text:match("^</") and not closed[tag] and tag ~= "p" and tag ~= "li" and tag ~= "a"
  end
  blocks = blocks:walk {
    RawInline = function(element)
      if is_text(element.text) then return pandoc.Str(element.text) end
      if element.text:match("^<!%-%-") then return {} end
      raw = true
      local tag = tag_of(element.text)
      if NEVER[tag] and not element.text:match("^</") then complain("<%s> cannot be shown in a PDF", tag) end
      if job.strict then complain("raw html is dropped in the PDF, write markdown: %s", element.text:sub(1, 60)) end
    end,
    RawBlock = function(element)
      if element.text:match("^%s*<!%-%-.*%-%->%s*$") then return {} end
      if is_text(element.text:match("^%s*(.*)$")) and not element.text:find("\n") then
        return pandoc.Para { pandoc.Str(element.text) }
      end
      raw = true
      for tag in element.text:gmatch("<([%a][%w-]*)") do
        if NEVER[tag:lower()] then complain("<%s> cannot be shown in a PDF", tag) end
      end
      if job.strict then complain("raw html is dropped in the PDF, write markdown: %s", element.text:sub(1, 60)) end
    end,
  }
  if not raw then return blocks end
  local notes = pandoc.List {}
  blocks = blocks:walk { Note = function(note)
    notes:insert(note)
    return pandoc.Str("\u{e002}" .. #notes .. "\u{e003}")
  end }
  local html = part.styled or pandoc.write(pandoc.Pandoc(blocks), "html", { highlight_style = pandoc.null })
  if job.asked then return pandoc.Blocks { pandoc.RawBlock("html", html) } end  -- to be styled, and read again
  return pandoc.read(html, "html-auto_identifiers").blocks:walk { Str = function(element)
    local before, n, after = element.text:match("^(.-)\u{e002}(%d+)\u{e003}(.*)$")
    return n and pandoc.Inlines { pandoc.Str(before), notes[tonumber(n)], pandoc.Str(after) } or nil
  end }
end

local function flow(blocks)
  return blocks:walk { Str = str, Code = function(code) code.text = restored(code.text) return code end,
      Link = function(link) link.target = restored(link.target) return link end }
    :walk { Inlines = inlines_of }
    :walk { Figure = function(whole)  -- of HTML: its own caption, not the alternative text of its picture
      return whole:walk { Image = function(image) image.caption = {} return image end }
    end }
    :walk { Para = paragraph, Plain = paragraph, Header = header, CodeBlock = listing, Blocks = captions }
end

local READ = {
  markdown = function()
    return flow(html_of(dashes_of(pandoc.read(part.text .. "\n", GFM .. (job.strict and "+smart" or "")).blocks)))
  end,
  asked = function() return html_of(dashes_of(pandoc.read(part.text .. "\n", GFM).blocks)) end,
  html = function()
    for tag in part.text:gmatch("<([%a][%w-]*)") do
      if NEVER[tag:lower()] then complain("<%s> cannot be shown in a PDF", tag) end
    end
    return flow(pandoc.read(part.text, "html-auto_identifiers").blocks)
  end,
  code = function() return pandoc.Blocks { pandoc.CodeBlock(part.text, { class = part.language, ["terminal-colours"] = part.styles }) } end,
  note = function() return pandoc.Blocks { pandoc.CodeBlock(part.text, { class = "note" }) } end,
  picture = function()
    local image = pandoc.Image({}, part.text)
    if part.width ~= "" then image.attributes.width = part.width end
    if part.height ~= "" then image.attributes.height = part.height end
    return pandoc.Blocks { pandoc.Para { image } }
  end,
}

-- ---------------------------------------------------------------- links to headings

local function slugs(text)  -- Jupyter's and GitHub's
  local github = pandoc.text.lower(text):gsub("[%p]", function(c) return (c == "-" or c == "_") and c or "" end)
  return text:gsub("%s", "-"), (github:gsub("%s", "-"))
end

local function unquoted(text) return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)) end

local function linked(blocks)
  local place, used = {}, {}
  local function unique(id)
    local n, name = 1, id
    while used[name] do n, name = n + 1, id .. "-" .. n end
    used[name] = true
    return name
  end
  local function anchor_of(element)  -- of several of one name a link leads to the first
    if element.identifier == "" then return nil end
    if place[element.identifier] then element.identifier = "" else place[element.identifier] = element.identifier end
    return element
  end
  blocks = blocks:walk { Span = anchor_of, Div = anchor_of,
    Header = function(head)
      local jupyter, github = slugs(pandoc.utils.stringify(head.content))
      local own = head.identifier
      if own == "" or not job.strict then
        local id = own ~= "" and own:gsub("^sec:", "") or github:gsub("[^%w_-]", "")
        id = "sec:" .. (id == "" and "section" or id)
        head.identifier = job.strict and id or unique(id)
      end
      for _, slug in ipairs { jupyter, github, own, head.identifier, (head.identifier:gsub("^sec:", "")) } do
        if slug ~= "" then place[slug] = place[slug] or head.identifier end
      end
      return head
    end }
  local function follow(link)
    if link.target == "" or link.target == "#" then return link.content end  -- typst makes no link to nowhere
    local name = link.target:match("^#(.+)$")
    if not name then return nil end
    name = unquoted(name)
    local found = place[name] or place[name:lower()] or place[name:gsub("%s", "-")]
    if found then
      link.target = "#" .. found
      return link
    end
    complain("the link #%s leads to no heading", name)
    return link.content
  end
  for i, block in ipairs(blocks) do
    part = { cell = tonumber(block.attributes.cell) }
    blocks[i] = block:walk { Link = follow }
  end
  part = nil
  return blocks
end

function Reader(input)
  job = pandoc.json.decode(tostring(input), false)
  local blocks, heads, first = pandoc.Blocks {}, 0, nil
  for _, one in ipairs(job.parts) do
    part = one
    if job.asked then one.kind = "asked" end
    local read = READ[one.kind]()
    local bare = one.text:gsub("<style.-</style>", "")
    if #read == 0 and one.kind == "html" and bare:match("%S") then complain("an output of text/html holds nothing to show") end
    read:walk { Header = function(head)
      if not first then first = head end
      if head.level == 1 then heads = heads + 1 end
    end }
    blocks:insert(pandoc.Div(read, pandoc.Attr("", { "part" }, { cell = string.format("%d", one.cell), section = one.section })))
  end
  part = nil
  local meta = { strict = job.strict or nil }
  if first and first.level == 1 and (heads == 1 or job.strict) then  -- the title, and not the first of several chapters
    meta.title = pandoc.utils.stringify(first.content)
    if job.strict or job.title == "" or job.title == meta.title then
      local gone = false
      blocks = blocks:walk { Header = function(head)
        if not gone and head.level == 1 then
          gone = true
          return {}
        end
      end }
      meta.lifted = true
    end
  end
  return pandoc.Pandoc(linked(blocks), meta)
end
