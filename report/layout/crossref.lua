-- Pandoc filter of the report: its sections, cross-references and listings, and a warning (which
-- fails the export) for everything that typst would drop or draw wrongly.

local KINDS = { fig = true, eq = true, tbl = true, sec = true, lst = true }
local FORBIDDEN = {  -- mathematics that pandoc converts wrongly without a word
  "\\operatorname*", "\\big", "\\Big", "\\overset", "\\underset", "\\stackrel", "\\xrightarrow",
  "\\tag", "\\textcolor", "{vmatrix}", "{Vmatrix}", "{array}", "{smallmatrix}",
}
local labels = {}

local function complain(...) pandoc.log.warn(string.format(...)) end

local function typst(text) return pandoc.RawInline("typst", text) end

local function define(element)
  local id = element.identifier
  if labels[id] then complain("label %s is defined twice", id) end
  labels[id] = id ~= ""
end

-- level 1 is the title, which the metadata holds; Abstract, References and .appendix have their own form
local function sections(doc)
  local body, abstract, in_abstract, in_appendix = pandoc.Blocks {}, pandoc.Blocks {}, false, false
  for _, block in ipairs(doc.blocks) do
    if block.t ~= "Header" then
      (in_abstract and abstract or body):insert(block)
    elseif block.level > 1 then
      in_abstract = block.identifier == "abstract"
      if block.classes:includes("appendix") and not in_appendix then
        in_appendix = true
        body:insert(pandoc.RawBlock("typst", "#place.flush()\n#show: appendix"))
      end
      if block.identifier == "references" then
        body:insert(pandoc.RawBlock("typst", '#place.flush()\n#bibliography("references.bib", title: "References")'))
      elseif not in_abstract then
        block.level = block.level - 1
        block.identifier = block.identifier:gsub("^sec:", ""):gsub("^", "sec:")
        body:insert(block)
      end
    end
  end
  doc.blocks, doc.meta.abstract = body, pandoc.MetaBlocks(abstract)
  return doc
end

-- $$...$$ {#eq:x} is a numbered equation; no line ends before a percent or plus-minus sign
local function inlines_of(inlines)
  for i = #inlines, 2, -1 do
    if inlines[i].t == "Str" and inlines[i].text:match("^[%%±]") and inlines[i - 1].t == "Space" then
      inlines[i - 1] = pandoc.Str("\u{a0}")
    end
    local id = inlines[i].t == "Str" and inlines[i].text:match("^{#(eq:[%w_-]+)}")
    local at = id and (inlines[i - 1].t == "Math" and i - 1 or i - 2)
    if id and inlines[at] and inlines[at].t == "Math" then
      local rest = inlines[i].text:gsub("^{#.-}", "")
      local equation = pandoc.Span(inlines[at], { id = id })
      define(equation)
      for _ = at, i do inlines:remove(at) end
      for j, inline in ipairs { typst("#numbered["), equation, typst("]"), pandoc.Str(rest) } do
        inlines:insert(at + j - 1, inline)
      end
    end
  end
  return inlines
end

-- a table stays on one page, unless it is longer than that
local function table_of(block)
  define(block)
  local rows = 0
  for _, body in ipairs(block.bodies) do rows = rows + #body.body end
  if rows <= 30 then return nil end
  local open = "#[\n#show figure.where(kind: table): set figure(placement: none)"
    .. "\n#show figure.where(kind: table): set block(breakable: true, above: 1.5em, below: 1.5em)"
  return { pandoc.RawBlock("typst", open), block, pandoc.RawBlock("typst", "]") }
end

local function listing(block)
  local caption = block.attributes.caption
  if not caption then return nil end
  define(block)
  local head = pandoc.utils.blocks_to_inlines(pandoc.read(caption, "markdown").blocks)
  head:insert(1, typst("#figure(kind: raw, supplement: [Listing], caption: ["))
  head:insert(typst("])["))
  local code = pandoc.CodeBlock(block.text, { class = block.classes[1] or "" })
  return { pandoc.Plain(head), code, pandoc.RawBlock("typst", "] <" .. block.identifier .. ">") }
end

local function image(element)
  local caption = pandoc.utils.stringify(element.caption)
  if caption == "" or caption == "png" then  -- png: a cell's output
    complain("an image has no caption: save it and link it as ![caption](../figures/name.png){#fig:name}")
  end
end

local function mathematics(math)
  for _, command in ipairs(FORBIDDEN) do
    if math.text:find(command, 1, true) then complain("%s converts wrongly in the formula %s", command, math.text) end
  end
  math.text = math.text:gsub("\\;", "\\ "):gsub("\\!", ""):gsub("\\|(.-)\\|", "\\lVert %1\\rVert ")
  return math
end

local function raw(element)
  if element.format == "typst" then return nil end
  if element.text:match("^<!%-%-") then return {} end
  complain("raw %s is dropped in the PDF, write markdown: %s", element.format, element.text:sub(1, 60))
end

-- @eq:a [@paper] is one Cite to pandoc: only its cross-references are replaced
local function reference(cite)
  local result, own = pandoc.Inlines {}, false
  for i, citation in ipairs(cite.citations) do
    local is_label = KINDS[citation.id:match("^(%a+):")]
    if i > 1 and (is_label or own) then result:insert(is_label and pandoc.Str(", ") or pandoc.Space()) end
    if is_label then
      if not labels[citation.id] then complain("undefined reference @%s", citation.id) end
      result:insert(typst("#ref(<" .. citation.id .. ">)"))
      own = true
    else
      result:insert(pandoc.Cite({ pandoc.Str("@" .. citation.id) }, { citation }))
    end
  end
  return own and result or nil
end

return {
  { Pandoc = sections },
  {
    Inlines = inlines_of,
    Header = define,
    Table = table_of,
    Figure = define,
    Image = image,
    CodeBlock = listing,
    Math = mathematics,
    RawBlock = raw,
    RawInline = raw,
  },
  { Cite = reference },
}
