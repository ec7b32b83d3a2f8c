-- Pandoc filter of the report for the web: figures, tables, listings, equations and sections get the numbers that the
-- PDF gives them, references become links, citations numbers in the order of their appearance. What CommonMark has no
-- word for is written as MyST.

local NAMES = { fig = "Figure", eq = "Equation", tbl = "Table", sec = "Section", lst = "Listing" }
local EXTENSIONS = "commonmark-smart+pipe_tables+tex_math_dollars+footnotes+strikeout"
local prefix, labels, counts, cited, places = "", {}, { fig = 0, eq = 0, tbl = 0, lst = 0 }, {}, {}

local function complain(...) pandoc.log.warn("0\t" .. string.format(...)) end

local function myst(text) return pandoc.RawBlock("commonmark", text) end

-- the name of the document before it: labels are the whole site's
local function anchor(label) return prefix .. label:gsub(":", "-") end

-- one line of MyST, or the lines of a block
local function written(content)
  local block = content.t and content or pandoc.Plain(content)
  local text = pandoc.write(pandoc.Pandoc { block }, EXTENSIONS, { wrap_text = "none", columns = 9999 })
  return (text:gsub("%s+$", ""))
end

-- ---------------------------------------------------------------- numbers

local function number(kind, label)
  counts[kind] = counts[kind] + 1
  if label ~= "" then
    labels[label] = kind == "eq" and string.format("(%d)", counts[kind]) or tostring(counts[kind])
  end
  return tostring(counts[kind])
end

local function section(heads, head, appendix)
  local level = head.level - 1  -- level 1 is the title
  heads[level] = (heads[level] or 0) + 1
  for deeper = level + 1, 6 do heads[deeper] = nil end
  local parts = pandoc.List {}
  for i = 1, level do parts:insert(tostring(heads[i] or 0)) end
  if appendix then parts[1] = string.char(64 + heads[1]) end
  return table.concat(parts, ".")
end

local function numbered(blocks)
  local heads, appendix = {}, false
  return blocks:walk {
    traverse = "topdown",
    Header = function(head)
      local label = head.identifier
      if head.classes:includes("appendix") and not appendix then
        heads, appendix = {}, true
      end
      local plain = label == "sec:abstract" or label == "sec:references" or head.level > 3
      if not plain then
        local name = section(heads, head, appendix)
        labels[label] = name
        head.content:insert(1, pandoc.Str(name .. " "))
      end
      return head
    end,
    Figure = function(figure)
      figure.attributes.number = number("fig", figure.identifier)
      return figure
    end,
    Table = function(block)
      if block.identifier == "" and #block.caption.long == 0 then return nil end
      block.attributes.number = number("tbl", block.identifier)
      return block
    end,
    CodeBlock = function(block)
      if not block.attributes.caption then return nil end
      block.attributes.number = number("lst", block.identifier)
      return block
    end,
    Inlines = function(inlines)  -- $$...$$ {#eq:x}
      for i = #inlines, 2, -1 do
        local id = inlines[i] and inlines[i].t == "Str" and inlines[i].text:match("^{#(eq:[%w_-]+)}")
        local at = id and (inlines[i - 1].t == "Math" and i - 1 or i - 2)
        if id and inlines[at] and inlines[at].t == "Math" then
          local rest = inlines[i].text:gsub("^{#.-}", "")
          inlines[at].text = inlines[at].text .. string.format(" \\tag{%s}", number("eq", id))
          inlines[at] = pandoc.Span(inlines[at], { id = id })
          for _ = at + 1, i do inlines:remove(at + 1) end
          if rest ~= "" then inlines:insert(at + 1, pandoc.Str(rest)) end
        end
      end
      return inlines
    end,
  }
end

-- ---------------------------------------------------------------- references and citations

local function link_to(label)
  local name = NAMES[label:match("^(%a+):")]
  if label:match("^sec:") and labels[label]:match("^%u") then name = "Appendix" end
  return pandoc.Link(name .. "\u{a0}" .. labels[label], "#" .. anchor(label))
end

local function place_of(key)
  if not places[key] then
    table.insert(cited, key)
    places[key] = #cited
  end
  return pandoc.Link(tostring(places[key]), "#" .. anchor("ref:" .. key))
end

local function reference(cite)
  local result, sources = pandoc.Inlines {}, pandoc.Inlines {}
  for _, one in ipairs(cite.citations) do
    if NAMES[one.id:match("^(%a+):")] then
      if #result > 0 then result:extend { pandoc.Str(","), pandoc.Space() } end
      if labels[one.id] then
        result:insert(link_to(one.id))
      else
        complain("undefined reference @%s", one.id)
      end
    else
      if #sources > 0 then sources:extend { pandoc.Str(","), pandoc.Space() } end
      sources:insert(place_of(one.id))
    end
  end
  if #sources > 0 then
    if #result > 0 then result:insert(pandoc.Space()) end
    result:insert(pandoc.Str("["))
    result:extend(sources)
    result:insert(pandoc.Str("]"))
  end
  return result
end

-- the sources in the words of pandoc's own citation style
local function bibliography(meta)
  local cites = pandoc.List {}
  for _, key in ipairs(cited) do cites:insert(pandoc.Cite({}, { pandoc.Citation(key, "NormalCitation") })) end
  local made = pandoc.utils.citeproc(pandoc.Pandoc({ pandoc.Para(cites) }, meta))
  local entries = {}
  made.blocks:walk { Div = function(div)
    if div.classes:includes("csl-entry") then entries[div.identifier] = pandoc.utils.blocks_to_inlines(div.content) end
  end }
  local result = pandoc.Blocks {}
  for i, key in ipairs(cited) do
    local entry = entries["ref-" .. key]
    if not entry then complain("unknown citation @%s", key) end
    local line = pandoc.Inlines { pandoc.Str(string.format("[%d]", i)), pandoc.Space() }
    line:extend(entry or {})
    result:insert(myst("(" .. anchor("ref:" .. key) .. ")="))
    result:insert(pandoc.Para(line))
  end
  return result
end

-- ---------------------------------------------------------------- what is written

-- real minus signs; a hyphen alone is a dash
local function str(element)
  if element.text == "-" then return pandoc.Str("\u{2013}") end
  return pandoc.Str(((" " .. element.text):gsub("([%s%(%[+])%-(%d)", "%1\u{2212}%2"):sub(2)))
end

local function titled(kind, block, content)
  local head = pandoc.Inlines { pandoc.Strong(string.format("%s %s.", NAMES[kind], block.attributes.number)), pandoc.Space() }
  head:extend(content)
  return written(head)
end

local function options(block, more)
  local lines = pandoc.List {}
  if block.identifier ~= "" then lines:insert(":name: " .. anchor(block.identifier)) end
  lines:extend(more or {})
  return table.concat(lines, "\n")
end

local function figure(block)
  local image
  block:walk { Image = function(one) image = one end }
  if not image then return nil end
  local alt = image.title ~= "" and image.title or image.attributes.alt or ""
  if alt == "" then complain("figure %s has no alternative text", block.identifier) end
  local more = pandoc.List { ":alt: " .. alt:gsub("%s+", " ") }
  more:insert(":width: " .. (image.attributes.width or "100%"))  -- with a width it is a link to the picture in full size
  local caption = titled("fig", block, pandoc.utils.blocks_to_inlines(block.caption.long))
  return myst(string.format("```{figure} %s\n%s\n\n%s\n```", image.src, options(block, more), caption))
end

local function table_of(block)
  local bare = block:clone()
  bare.caption, bare.attr = { long = {} }, pandoc.Attr()
  if not block.attributes.number then return myst(written(bare)) end
  local caption = titled("tbl", block, pandoc.utils.blocks_to_inlines(block.caption.long))
  return myst(string.format("```{table} %s\n%s\n\n%s\n```", caption, options(block), written(bare)))
end

local function code(block)
  local language = block.classes[1] == "python" and "python" or "text"
  local fence = "````"
  if not block.attributes.number then return myst(fence .. language .. "\n" .. block.text .. "\n" .. fence) end
  local caption = pandoc.utils.blocks_to_inlines(pandoc.read(block.attributes.caption, "markdown").blocks)
  local more = options(block, { ":caption: " .. titled("lst", block, caption) })
  return myst(string.format("%s{code-block} %s\n%s\n\n%s\n%s", fence, language, more, block.text, fence))
end

local function equation(math, id)
  local target = id and string.format("(%s)=\n", anchor(id)) or ""
  return myst(target .. "$$\n" .. math.text:gsub("^%s+", ""):gsub("%s+$", "") .. "\n$$")
end

-- a displayed formula is a block of its own
local function paragraph(block)
  local result, text = pandoc.Blocks {}, pandoc.Inlines {}
  local make = block.t == "Plain" and pandoc.Plain or pandoc.Para
  local function flush()
    while #text > 0 and text[1].t:match("Space$") or #text > 0 and text[1].t == "SoftBreak" do text:remove(1) end
    if #text > 0 then result:insert(make(text)) end
    text = pandoc.Inlines {}
  end
  for _, one in ipairs(block.content) do
    local math = one.t == "Span" and #one.content == 1 and one.content[1].t == "Math" and one.content[1] or one
    if math.t == "Math" and math.mathtype == "DisplayMath" then
      flush()
      result:insert(equation(math, one.t == "Span" and one.identifier))
    else
      text:insert(one)
    end
  end
  if #result == 0 then return nil end
  flush()
  return result
end

local function header(head)
  local target = head.identifier ~= "" and string.format("(%s)=\n", anchor(head.identifier)) or ""
  return myst(target .. string.rep("#", head.level) .. " " .. written(head.content))
end

function Pandoc(doc)
  prefix = pandoc.utils.stringify(doc.meta.name) .. "-"
  local blocks = pandoc.Blocks {}
  for _, block in ipairs(doc.blocks) do
    blocks:extend(block.t == "Div" and block.classes:includes("part") and block.content or { block })
  end
  blocks = numbered(blocks):walk { traverse = "topdown", Cite = reference }:walk {
    Str = str,
    Link = function(link)
      if link.target:match("^#%a+:") then link.target = "#" .. anchor(link.target:sub(2)) end
      return link
    end,
  }
  local result = pandoc.Blocks {}
  for _, block in ipairs(blocks) do
    result:insert(block)
    if block.t == "Header" and block.identifier == "sec:references" then result:extend(bibliography(doc.meta)) end
  end
  doc.blocks = result:walk { Para = paragraph, Plain = paragraph }
    :walk { Figure = figure, Table = table_of, CodeBlock = code, Header = header }
    :walk { Span = function(span) return span.content end }
  return doc
end
