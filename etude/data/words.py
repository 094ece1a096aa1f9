"""Common English nouns, for the tasks that need words. Their order is part of what a seed gives."""

from __future__ import annotations

WORDS = tuple(
    """
    apple arrow autumn badge banana barrel basket beach beard berry bicycle blanket blossom board bottle
    branch bread breeze brick bridge brush bucket button cabin camel candle canyon carpet carrot castle
    cattle ceiling cellar chain chair chalk cheese cherry chicken circle city cliff clock cloud clover coast
    coffee comet copper corner cotton couch cousin cradle crayon cream creek cricket crown crystal cupboard
    curtain cushion daisy dancer desert diamond dinner doctor dolphin donkey door dragon drawer dress drum
    eagle earth elbow engine evening fabric falcon farmer feather fence ferry field finger fire fish flag
    flame flask flower flute forest fountain fox frame friend frog fruit garden garlic gate ghost giant
    ginger giraffe glacier glass glove goat gold goose grain grape grass gravel guitar hammer harbor harvest
    hat hawk helmet hill honey hook horse hotel house hunter island ivory jacket jewel journey jungle kettle
    key king kitchen kite kitten knife ladder lake lamp lantern laptop leaf leather lemon letter library
    light lily lion lizard locket lotus magnet mango maple marble market meadow medal melon mirror mitten
    monkey moon morning mountain mouse mouth muffin museum music napkin needle nest night noodle north nurse
    oak oasis ocean office olive onion orange orchard otter oven owl paddle page palace panda paper parrot
    pasta path peach peanut pear pearl pebble pencil pepper piano picnic pigeon pillow pilot pine pirate
    planet plate pocket pond pony potato pottery powder prince puddle pumpkin puppet puppy purse puzzle
    queen quilt rabbit radio rain rainbow raven ribbon rice river road robin rocket roof rope rose ruby
    saddle sailor salad salmon salt sand sandal scarf school scissors seed shadow sheep shell shelf ship
    shirt shoe shovel silk silver singer sister sky sleeve slipper smoke snail snow soap sock soup spade
    sparrow spider spoon spring squirrel stable star station stone storm stove straw stream street sugar
    summer sun swan sweater table tailor teacher teapot temple tent thimble thread throne thumb thunder
    ticket tiger timber toast tomato tooth tower town toy tractor train treasure tree trumpet tulip tunnel
    turtle uncle valley vase velvet village violin wagon wallet walnut water wave weather whale wheat wheel
    whistle willow window winter wizard wolf wood wool worm yard zebra zipper anchor antler apron balloon
    bamboo beaver beetle bench biscuit bonnet bracelet bronze buffalo bubble butter cactus canoe canvas
    captain cedar cello chestnut chimney cinnamon coral cottage coyote crane dagger dawn deer dusk emerald
    fiddle fig flour gazelle gull heron iris ivy jaguar kernel lagoon lark lavender ledge lobster mantle
    mole moss moth nectar nutmeg oyster panther parcel peacock pelican pier plum poppy quarry quartz reef
    saffron sapphire satin shrimp skunk sled spruce swallow thistle toad topaz trout vine violet vulture
    wasp weasel wren
    """.split()
)
